"""CMU's AN4 becomes LibriSpeech's layout, from a folder or an archive; what is not whole is told."""

import io
import tarfile

import numpy as np
import pytest
import soundfile

import an4_corpus
from an4_corpus import prepare_an4, read_cmu_lists
from get_corpus import main
from range_server import serve
from small_corpus import TINY_YAML
from twopass_kd.config.schema import ConfigError

SPEAKERS = [f"f{letter}xx" for letter in "abcdefghij"]  # the fifth is for dev
LINES = ["YES (an251-{}-b)", "<s> u m six </s> (an253-{}-b)", "H I (cen1-{}-b)"]


@pytest.fixture()
def cmu(tmp_path, monkeypatch):
    """A folder as CMU's, of ten training speakers and one other, three utterances each."""
    sets = {"train": SPEAKERS, "test": ["mtst2"]}
    counted = {name: (*an4_corpus.CMU_SETS[name][:2], 3 * len(speakers)) for name, speakers in sets.items()}
    monkeypatch.setattr(an4_corpus, "CMU_SETS", counted)
    folder = tmp_path / "cmu" / "an4"
    for name, speakers in sets.items():
        lines = [line.format(speaker) for speaker in speakers for line in LINES]
        path = folder / f"etc/an4_{name}.transcription"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    for i, utterance in enumerate(read_without_audio(folder)):
        path = folder / utterance.audio
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples(i), 16000, format="NIST", subtype="PCM_16", endian="BIG")
    return folder


def read_without_audio(folder):
    with pytest.MonkeyPatch.context() as patch:
        real = type(folder).is_file
        patch.setattr(type(folder), "is_file", lambda path: path.suffix == ".sph" or real(path))
        return list(read_cmu_lists(folder))


def samples(i):
    return np.random.default_rng(i).integers(-9000, 9000, 4000).astype(np.int16)


def parts(corpus_dir):
    return sorted(str(path.relative_to(corpus_dir)) for path in corpus_dir.rglob("*.flac"))


def test_speakers_chapters_and_parts(cmu, tmp_path):
    corpus = tmp_path / "cmu" / "LibriSpeech"  # CMU's folder is beside it
    prepare_an4(corpus)
    names = parts(corpus)
    assert len(names) == 33 and names[0] == "dev/1005/1/1005-1-0000.flac"
    assert [name for name in names if name.startswith("test")] == [
        "test/1011/1/1011-1-0000.flac", "test/1011/1/1011-1-0001.flac", "test/1011/2/1011-2-0000.flac"
    ]  # fmt: skip
    assert (corpus / "train/1001/1/1001-1.trans.txt").read_text() == "1001-1-0000 YES\n1001-1-0001 U M SIX\n"
    for i, utterance in enumerate(read_cmu_lists(cmu)):
        found, rate = soundfile.read(
            corpus / utterance.part / utterance.folder / f"{utterance.name}.flac", dtype="int16"
        )
        assert rate == 16000
        np.testing.assert_array_equal(found, samples(i))
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    prepare_an4(corpus)
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}


def test_a_part_that_is_missing_is_made_where_cmus_folder_is_there(cmu):
    prepare_an4(cmu)  # the folder itself
    assert len(parts(cmu)) == 33
    for path in sorted((cmu / "dev").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (cmu / "dev").rmdir()
    prepare_an4(cmu)
    assert len(parts(cmu)) == 33 and not list(cmu.rglob(".partial*"))


@pytest.fixture()
def server(cmu):
    buffer, requests = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(cmu, arcname="an4")
    files = {"/an4_sphere.tar.gz": buffer.getvalue()}
    with serve(files, requests) as url:
        yield f"{url}/an4_sphere.tar.gz", files, requests


def test_the_archive_is_downloaded_from_where_it_stopped(server, tmp_path):
    url, files, requests = server
    corpus = tmp_path / "download" / "LibriSpeech"
    corpus.parent.mkdir()
    (corpus.parent / "an4_sphere.tar.gz").write_bytes(files["/an4_sphere.tar.gz"][:1000])
    prepare_an4(corpus, url)
    assert requests == [("/an4_sphere.tar.gz", 1000)] and len(parts(corpus)) == 33
    for path in sorted(corpus.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    prepare_an4(corpus, url)
    assert len(requests) == 1 and len(parts(corpus)) == 33, "what is unpacked is used"


@pytest.mark.parametrize("place", [-6, *range(1000, 1400, 10)])  # the first is in gzip's checksum
def test_a_damaged_archive_is_removed(server, tmp_path, place):
    url, files, _ = server
    data = bytearray(files["/an4_sphere.tar.gz"])
    data[place] ^= 255
    files["/an4_sphere.tar.gz"] = bytes(data)
    with pytest.raises(ValueError, match="an4_sphere.tar.gz` was damaged and is removed: run again"):
        prepare_an4(tmp_path / "download" / "LibriSpeech", url)
    assert [path.name for path in (tmp_path / "download").iterdir()] == []


def test_a_folder_named_an4_that_is_not_cmus_is_told_before_anything_is_downloaded(server, tmp_path):
    url, _, requests = server
    (tmp_path / "download" / "an4").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"an4 must be CMU's folder \(with etc/ and wav/\) or not exist"):
        prepare_an4(tmp_path / "download" / "LibriSpeech", url)
    assert requests == []


def test_no_network_says_what_to_do(tmp_path):
    with pytest.raises(ConnectionError, match="download an4_sphere.tar.gz elsewhere, to "):
        prepare_an4(tmp_path / "LibriSpeech", "http://127.0.0.1:9/an4_sphere.tar.gz")


def remove_list(cmu):
    (cmu / "etc/an4_test.transcription").unlink()


def shorten_list(cmu):
    path = cmu / "etc/an4_train.transcription"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


def break_line(cmu):
    path = cmu / "etc/an4_train.transcription"
    path.write_text(path.read_text().replace("YES (an251-faxx-b)", "YES an251"))


def remove_recording(cmu):
    (cmu / "wav/an4test_clstk/mtst2/cen1-mtst2-b.sph").unlink()


def damage_recording(cmu):
    (cmu / "wav/an4_clstk/faxx/an251-faxx-b.sph").write_bytes(b"NIST_1A\n")


@pytest.mark.parametrize("damage, told", [
    (remove_list, "an4_test.transcription must exist; unpack an4_sphere.tar.gz again"),
    (shorten_list, "an4_train.transcription must have 30 lines, not 29"),
    (break_line, r"an4_train.transcription, line 1: must be `WORDS \(an1-speaker-b\)`, but is 'YES an251'"),
    (remove_recording, "cen1-mtst2-b.sph must exist, since .*an4_test.transcription, line 3 names it"),
    (damage_recording, "an251-faxx-b.sph must be a SPHERE file"),
])  # fmt: skip
def test_a_folder_of_cmu_that_is_not_whole_is_told(cmu, tmp_path, damage, told):
    damage(cmu)
    with pytest.raises(ConfigError, match=told):
        prepare_an4(cmu.parent / "LibriSpeech")
    assert not any((cmu.parent / "LibriSpeech" / part).exists() for part in an4_corpus.PARTS)


def test_some_parts_without_cmus_folder_are_an_error(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    assert main(["--conf", str(TINY_YAML), "--corpus-dir", str(tmp_path), "corpus.kind=an4"]) == 1
    assert f"`--corpus-dir` ({tmp_path}) has train, but not dev, test; complete it" in capsys.readouterr().err


def test_parts_that_an4_does_not_have_are_an_error(cmu, capsys):
    assert main(["--conf", str(TINY_YAML), "--corpus-dir", str(cmu), "corpus.kind=an4"]) == 1
    assert "must have a folder train-clean" in capsys.readouterr().err
