"""Tests of local/check_utterances.py and local/prepare_manifests.py."""

import numpy as np
import pytest
import soundfile
from lhotse import RecordingSet, SupervisionSet

from check_utterances import check_audio
from prepare_manifests import main, manifest_path, musan_manifest_path, prepare_manifests, read_left_out
from small_corpus import TINY_YAML, small_config, write_corpus, write_musan, write_utterance
from twopass_kd.config import ConfigError


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_the_end(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)


def header_only(path):
    path.write_bytes(path.read_bytes()[:60])


def no_samples(path):
    soundfile.write(path, np.zeros(0), 16000, format="WAV")


def silence(path):
    soundfile.write(path, np.zeros(16000), 16000)


def replace_transcript(old, new):
    def change(path):
        transcript = next(path.parent.glob("*.trans.txt"))
        assert old in transcript.read_bytes()
        transcript.write_bytes(transcript.read_bytes().replace(old, new))

    return change


def twice_in_transcript(path):
    transcript = next(path.parent.glob("*.trans.txt"))
    transcript.write_text(transcript.read_text() + f"{path.stem} SOMETHING ELSE\n")


def twice_as_file(path):
    other = path.parent.parent / "999"
    other.mkdir()
    (other / path.name).write_bytes(path.read_bytes())


def move_elsewhere(path):
    other = path.parent.parent / "999"
    other.mkdir()
    path.rename(other / path.name)


BAD_INPUTS = [
    ("truncated", truncate, "truncated or damaged audio"),
    ("last bytes missing", cut_the_end, "truncated or damaged audio"),
    ("damaged in the middle", damage, "truncated or damaged audio"),
    ("only the header", header_only, "audio"),
    ("empty file", lambda path: path.write_bytes(b""), "empty audio file"),
    ("not audio", lambda path: path.write_text("hello " * 200), "not a readable audio file"),
    ("no samples", no_samples, "audio without samples"),
    ("silence", silence, "silence"),
    ("too short", lambda path: soundfile.write(path, np.full(1000, 0.1), 16000), "shorter than corpus.min_duration"),
    (
        "too long",
        lambda path: soundfile.write(path, np.full(31 * 16000, 0.1), 16000),
        "longer than corpus.max_duration",
    ),
    ("transcript without audio", lambda path: path.unlink(), "transcript without audio"),
    ("misplaced audio", move_elsewhere, "audio is not in the folder of its id (10/100/10-100-0000.flac)"),
    ("missing transcript line", replace_transcript(b"10-100-0000 THE OLD CAPTAIN\n", b""), "audio without transcript"),
    (
        "missing transcript file",
        lambda path: write_utterance(path.parents[2], "77-770-0001", None),
        "without transcript",
    ),
    ("empty transcript", replace_transcript(b"THE OLD CAPTAIN\n", b"\n"), "empty transcript"),
    ("blank transcript", replace_transcript(b"THE OLD CAPTAIN\n", b"   \n"), "empty transcript"),
    ("not UTF-8", replace_transcript(b"0000 THE OLD", b"0000 CAF\xe9 OLD"), "transcript is not UTF-8"),
    ("id twice in transcript", twice_in_transcript, "duplicate id"),
    ("id twice as file", twice_as_file, "duplicate id"),
]


@pytest.mark.parametrize("spoil, reason", [row[1:] for row in BAD_INPUTS], ids=[row[0] for row in BAD_INPUTS])
def test_prepare_manifests_bad_utterance_is_left_out_and_accounted_for(tmp_path, capsys, spoil, reason):
    folders = write_corpus(tmp_path / "corpus", count=2)
    spoil(folders["train-clean"] / "10" / "100" / "10-100-0000.flac")
    prepare_manifests(small_config("corpus.max_left_out=0.5"), tmp_path / "corpus", tmp_path / "data")
    rows = read_left_out(tmp_path / "data" / "manifests" / "left_out.tsv")
    assert len(rows) == 1 and rows[0].part == "train-clean" and reason in rows[0].reason
    assert rows[0].utterance == ("77-770-0001" if "77-770" in str(rows) else "10-100-0000")
    out = capsys.readouterr().out
    assert (
        f"left out 1: {rows[0].reason} (e.g. {rows[0].utterance})" in out and "dev-clean: 2 utterances used, 0" in out
    )
    recordings = RecordingSet.from_file(manifest_path(tmp_path / "data", "recordings", "train-clean"))
    supervisions = SupervisionSet.from_file(manifest_path(tmp_path / "data", "supervisions", "train-clean"))
    kept = {"10-100-0001"} | ({"10-100-0000"} if "77-770" in str(rows) else set())
    assert {r.id for r in recordings} == {s.id for s in supervisions} == kept


def test_prepare_manifests_same_id_in_two_parts_is_left_out_of_both(tmp_path):
    folders = write_corpus(tmp_path / "corpus", count=2)
    write_utterance(folders["dev-clean"], "10-100-0000", "ANOTHER TEXT")
    prepare_manifests(small_config("corpus.max_left_out=0.5"), tmp_path / "corpus", tmp_path / "data")
    rows = read_left_out(tmp_path / "data" / "manifests" / "left_out.tsv")
    assert {(r.utterance, r.part, r.reason) for r in rows} == {
        ("10-100-0000", part, "duplicate id") for part in ("train-clean", "dev-clean")
    }


def test_prepare_manifests_stereo_at_44100_hz_is_used_and_said(tmp_path, capsys):
    folders = write_corpus(tmp_path / "corpus", count=2)
    write_utterance(folders["train-clean"], "10-100-0009", "IN STEREO", rate=44100, channels=2)
    scans = prepare_manifests(small_config(), tmp_path / "corpus", tmp_path / "data")
    assert "10-100-0009" in scans["train-clean"].texts and not scans["train-clean"].left_out
    out = capsys.readouterr().out
    assert "used 1: 2 channels, the first is used; 44100 Hz, resampled to 16000 Hz in stage 2 (e.g. 10-100-0009)" in out


def test_prepare_manifests_path_with_spaces_and_other_letters(tmp_path):
    root = tmp_path / "mein Körper 语音"
    write_corpus(root / "Libri Speech", count=2)
    prepare_manifests(small_config(), root / "Libri Speech", root / "dätä")
    recordings = RecordingSet.from_file(manifest_path(root / "dätä", "recordings", "test-other"))
    assert [r.load_audio().shape[0] for r in recordings] == [1, 1]


def test_prepare_manifests_text_is_normalised_as_librispeech(tmp_path):
    folders = write_corpus(tmp_path / "corpus", count=1)
    write_utterance(folders["train-clean"], "10-100-0005", "  the café\tis\u00a0open ")
    prepare_manifests(small_config(), tmp_path / "corpus", tmp_path / "data", num_jobs=2)
    supervisions = SupervisionSet.from_file(manifest_path(tmp_path / "data", "supervisions", "train-clean"))
    found = {s.id: s for s in supervisions}["10-100-0005"]
    assert found.text == "THE CAFÉ IS OPEN" and found.speaker == "10" and found.duration == 1.0


def test_prepare_manifests_more_than_the_limit_is_an_error_and_leaves_the_list(tmp_path, capsys):
    folders = write_corpus(tmp_path / "corpus", count=4)
    truncate(folders["dev-clean"] / "20" / "200" / "20-200-0003.flac")
    args = ["--conf", TINY_YAML, "--corpus-dir", tmp_path / "corpus", "--data-dir", tmp_path / "data", "--nj", "1"]
    assert main(list(map(str, args))) == 1
    err = capsys.readouterr().err
    assert (
        "`corpus.max_left_out` (0.01) must be at least 0.25 for part `dev-clean`" in err and "20-200-0003: trunc" in err
    )
    assert [row.utterance for row in read_left_out(tmp_path / "data" / "manifests" / "left_out.tsv")] == ["20-200-0003"]
    assert not manifest_path(tmp_path / "data", "recordings", "dev-clean").exists()
    assert main([*map(str, args), "corpus.max_left_out=0.25"]) == 0
    assert manifest_path(tmp_path / "data", "recordings", "dev-clean").exists()


def test_prepare_manifests_missing_or_empty_part_is_an_error(tmp_path):
    write_corpus(tmp_path / "corpus", count=1)
    with pytest.raises(ConfigError, match="tset is missing; it has: dev-clean, test-clean, test-other, train-clean"):
        prepare_manifests(small_config("corpus.test_parts=[tset]"), tmp_path / "corpus", tmp_path / "data")
    with pytest.raises(ConfigError, match="no folders. Run stage 0"):
        prepare_manifests(small_config(), tmp_path / "nothing", tmp_path / "data")
    (tmp_path / "corpus" / "empty").mkdir()
    with pytest.raises(ConfigError, match="part `empty` must hold utterances"):
        prepare_manifests(small_config("corpus.test_parts=[empty]"), tmp_path / "corpus", tmp_path / "data")


def test_prepare_manifests_musan(tmp_path):
    cfg = small_config("corpus.musan=true", "train.cache_frozen_encoders=false")
    write_corpus(tmp_path / "LibriSpeech", count=1)
    with pytest.raises(ConfigError, match="musan` must hold MUSAN's music.*run stage 0.*corpus.musan=false"):
        prepare_manifests(cfg, tmp_path / "LibriSpeech", tmp_path / "data")
    write_musan(tmp_path / "musan")
    prepare_manifests(cfg, tmp_path / "LibriSpeech", tmp_path / "data")
    for part, seconds in {"music": 12.0, "speech": 7.0, "noise": 16.5}.items():
        (recording,) = RecordingSet.from_file(musan_manifest_path(tmp_path / "data", part))
        assert recording.duration == seconds and recording.load_audio().shape == (1, int(16000 * seconds))


def test_check_audio_good_file_has_no_remark(tmp_path):
    path = write_utterance(tmp_path, "1-2-0003", "A")
    assert check_audio(path, 0.3, 30, 16000) == (None, "")
    assert check_audio(path, 0.3, 30, 8000) == (None, "16000 Hz, resampled to 8000 Hz in stage 2")
