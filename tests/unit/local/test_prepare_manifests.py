"""Tests of local/check_utterances.py and local/prepare_manifests.py."""

import os
import struct
import zlib
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import soundfile
from lhotse import RecordingSet, SupervisionSet

import check_utterances
from check_utterances import check_audio
from left_out import read_left_out
from prepare_manifests import main, prepare_manifests
from small_corpus import TINY_YAML, small_config, write_corpus, write_musan, write_utterance
from twopass_kd.config.schema import ConfigError
from twopass_kd.files.layout import checksums_path, manifest_path, musan_manifest_path


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


def not_finite(path):
    soundfile.write(path, np.array([0.1, np.nan] * 8000, dtype=np.float32), 16000, format="WAV", subtype="FLOAT")


def short_wav(path):
    soundfile.write(path, np.full(16000, 0.1), 16000, format="WAV")
    truncate(path)


def zero_hertz(path):
    soundfile.write(path, np.full(16000, 0.1), 16000, format="WAV")
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", 0)
    path.write_bytes(data)


def instead(make):
    """What replaces the file by something that `make` puts there."""

    def change(path):
        path.unlink()
        make(path)

    return change


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
    ("not finite", not_finite, "samples that are not finite numbers"),
    ("truncated WAV", short_wav, "truncated audio: "),
    ("0 Hz", zero_hertz, "not a readable audio file"),
    ("broken link", instead(lambda path: path.symlink_to("/nowhere/a.flac")), "broken link: "),
    ("link to itself", instead(lambda path: path.symlink_to(path.name)), "broken link: "),
    ("pipe", instead(os.mkfifo), "not a file"),
    ("folder", instead(os.mkdir), "transcript without audio: 10/100/10-100.trans.txt:1 (10/100/10-100-0000.flac is no"),
    ("MP4", lambda path: path.rename(path.with_suffix(".M4A")), "not read, convert it to FLAC or WAV: 10/100/10-100-0"),
    ("no suffix", lambda path: path.rename(path.with_suffix("")), "(10/100/10-100-0000 is no audio file)"),
    ("missing transcript line", replace_transcript(b"10-100-0000 THE OLD CAPTAIN\n", b""), "audio without transcript"),
    (
        "missing transcript file",
        lambda path: write_utterance(path.parents[2], "77-770-0001", None),
        "without transcript",
    ),
    ("empty transcript", replace_transcript(b"THE OLD CAPTAIN\n", b"\n"), "empty transcript"),
    ("blank transcript", replace_transcript(b"THE OLD CAPTAIN\n", b"   \n"), "empty transcript"),
    (
        "not UTF-8",
        replace_transcript(b"0000 THE OLD", b"0000 CAF\xe9 OLD"),
        "transcript is not UTF-8: 10/100/10-100.trans.txt:1",
    ),
    ("id only", replace_transcript(b" THE OLD CAPTAIN\n", b"\n"), "empty transcript: 10/100/10-100.trans.txt:1"),
    (
        "id twice in transcript",
        twice_in_transcript,
        "duplicate id: train-clean/10/100/10-100.trans.txt:1 and train-clean/10/100/10-100.trans.txt:3",
    ),
    (
        "id twice as file",
        twice_as_file,
        "duplicate id: train-clean/10/100/10-100-0000.flac and train-clean/10/999/10-100-0000.flac",
    ),
]


@pytest.mark.parametrize("spoil, reason", [row[1:] for row in BAD_INPUTS], ids=[row[0] for row in BAD_INPUTS])
def test_prepare_manifests_bad_utterance_is_left_out_and_accounted_for(tmp_path, capsys, spoil, reason):
    folders = write_corpus(tmp_path / "corpus", count=2)
    spoil(folders["train-clean"] / "10" / "100" / "10-100-0000.flac")
    prepare_manifests(small_config("corpus.max_left_out=0.5"), tmp_path / "corpus", tmp_path / "data")
    rows = read_left_out(tmp_path / "data")
    assert len(rows) == 1 and rows[0].part == "train-clean" and reason in rows[0].reason
    assert rows[0].utterance == ("77-770-0001" if "77-770" in str(rows) else "10-100-0000")
    out = capsys.readouterr().out
    kind, colon, detail = rows[0].reason.partition(": ")
    assert f"left out 1: {kind} (e.g. {rows[0].utterance}{colon}{detail})" in out
    assert "dev-clean: 2 utterances used, 0 left out, of 2 audio files and 2 transcript lines" in out
    recordings = RecordingSet.from_file(manifest_path(tmp_path / "data", "recordings", "train-clean"))
    supervisions = SupervisionSet.from_file(manifest_path(tmp_path / "data", "supervisions", "train-clean"))
    kept = {"10-100-0001"} | ({"10-100-0000"} if "77-770" in str(rows) else set())
    assert {r.id for r in recordings} == {s.id for s in supervisions} == kept


def test_prepare_manifests_same_id_in_two_parts_is_left_out_of_both(tmp_path):
    folders = write_corpus(tmp_path / "corpus", count=2)
    write_utterance(folders["dev-clean"], "10-100-0000", "ANOTHER TEXT")
    prepare_manifests(small_config("corpus.max_left_out=0.5"), tmp_path / "corpus", tmp_path / "data")
    rows = read_left_out(tmp_path / "data")
    files, lines = "10/100/10-100-0000.flac", "10/100/10-100.trans.txt:1"
    reason = f"duplicate id: train-clean/{files} and dev-clean/{files}, train-clean/{lines} and dev-clean/{lines}"
    assert {(r.utterance, r.part, r.reason) for r in rows} == {
        ("10-100-0000", part, reason) for part in ("train-clean", "dev-clean")
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
    assert [row.utterance for row in read_left_out(tmp_path / "data")] == ["20-200-0003"]
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
    with pytest.raises(ConfigError, match="part `empty` must have transcripts.* it has 0 audio files$"):
        prepare_manifests(small_config("corpus.test_parts=[empty]"), tmp_path / "corpus", tmp_path / "data")
    (tmp_path / "corpus" / "a-file").touch()
    with pytest.raises(ConfigError, match=r"a-file \(no folder\) is missing"):
        prepare_manifests(small_config("corpus.test_parts=[a-file]"), tmp_path / "corpus", tmp_path / "data")


def test_prepare_manifests_alignments_are_used_where_they_fit(tmp_path, capsys):
    chapter = write_corpus(tmp_path / "corpus", count=3)["train-clean"] / "10" / "100"
    lines = (chapter / "10-100.trans.txt").read_text().splitlines()
    words = {name: text.split() for name, text in (line.split(maxsplit=1) for line in lines)}

    def line(name, words, step=1):
        ends = [f"{0.1 * (i + 1):.1f}" for i in range(len(words) + 1)][::step]
        return f'{name} "{",".join(["", *words])}" "{",".join(ends)}"\n'

    (chapter / "10-100.alignment.txt").write_text(
        line("10-100-0000", [word.lower() for word in words["10-100-0000"]])
        + line("10-100-0001", ["SOMETHING", "ELSE"])
        + line("10-100-0002", words["10-100-0002"], step=-1)
    )
    prepare_manifests(small_config(), tmp_path / "corpus", tmp_path / "data")
    found = SupervisionSet.from_file(manifest_path(tmp_path / "data", "supervisions", "train-clean"))
    starts = {s.id: [item.start for item in s.alignment["word"]] for s in found if s.alignment}
    assert starts == {"10-100-0000": [0.1, 0.2, 0.3]}
    out = capsys.readouterr().out
    assert "used 1: alignment of another text, not used (e.g. 10-100-0001)" in out
    assert "used 1: alignment whose times do not go forward, not used (e.g. 10-100-0002)" in out
    (chapter / "10-100.alignment.txt").write_text("10-100-0000 no times\n")
    prepare_manifests(small_config(), tmp_path / "corpus", tmp_path / "data")
    assert "alignment file that cannot be read (ValueError)" in capsys.readouterr().out


def test_prepare_manifests_musan(tmp_path):
    cfg = small_config("corpus.musan=true")
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


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_check_audio_ogg_that_ends_early(tmp_path, subtype):
    """Libsndfile reads it up to there and reports nothing."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8 * 16000), 16000, format="OGG", subtype=subtype)
    assert check_audio(path, 0.3, 30, 16000) == (None, "")
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1, whole.rindex(b"OggS"), whole.rindex(b"OggS") + 20):
        path.write_bytes(whole[:cut])
        assert check_audio(path, 0.3, 30, 16000)[0].startswith("truncated audio: the last Ogg page is missing")


def test_check_audio_flac_without_length(tmp_path):
    path = write_utterance(tmp_path, "1-2-0003", "A")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO's number of samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert "header does not say how long the audio is" in check_audio(path, 0.3, 30, 16000)[0]


def test_check_audio_wav_of_a_pipe_is_no_truncation(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(16000, 0.1), 16000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4  # as programs leave it that write into a pipe
    path.write_bytes(data)
    assert check_audio(path, 0.3, 30, 16000) == (None, "")


def test_check_audio_no_exception_gets_out(tmp_path, monkeypatch):
    path = write_utterance(tmp_path, "1-2-0003", "A")
    for error in (MemoryError(), TypeError("samplerate"), PermissionError(13, "Permission denied")):

        def fail(*args, error=error, **options):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(check_utterances.soundfile, "read", fail)
            assert check_audio(path, 0.3, 30, 16000)[0].startswith("truncated or damaged audio: ")
            patch.setattr(check_utterances.soundfile, "info", fail)
            assert check_audio(path, 0.3, 30, 16000)[0].startswith("not a readable audio file: ")
    assert check_audio(tmp_path / "gone.flac", 0.3, 30, 16000) == ("not a file", "")


def test_prepare_manifests_process_that_is_killed_is_named(tmp_path, capsys, monkeypatch):
    class Killed:
        def __init__(self, num_jobs):
            self.num_jobs = num_jobs

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def map(self, *args, **options):
            raise BrokenProcessPool("a process died")

    monkeypatch.setattr(check_utterances, "ProcessPoolExecutor", Killed)
    write_corpus(tmp_path / "corpus", count=2)
    args = ["--conf", TINY_YAML, "--corpus-dir", tmp_path / "corpus", "--data-dir", tmp_path / "data", "--nj", "7"]
    assert main(list(map(str, args))) == 1
    assert "part `train-clean` was killed at 10-100-0000 or soon after it; where memory" in capsys.readouterr().err


def test_prepare_manifests_checksums_of_used_files_sorted_by_id(tmp_path):
    folders = write_corpus(tmp_path / "corpus", count=3)
    chapter = folders["train-clean"] / "10" / "100"
    truncate(chapter / "10-100-0001.flac")
    first = write_utterance(folders["train-clean"], "1-100-0000", "A")
    prepare_manifests(small_config("corpus.max_left_out=0.5"), tmp_path / "corpus", tmp_path / "data")
    files = [first, chapter / "10-100-0000.flac", chapter / "10-100-0002.flac"]
    expected = "".join(f"{path.stem}\t{zlib.crc32(path.read_bytes()):08x}\n" for path in files)
    assert checksums_path(tmp_path / "data", "train-clean").read_text() == expected
    assert checksums_path(tmp_path / "data", "dev-clean").is_file()


def test_prepare_manifests_nothing_usable_is_an_error_whatever_may_be_left_out(tmp_path, capsys):
    folders = write_corpus(tmp_path / "corpus", count=7)
    for path in folders["dev-clean"].rglob("*.flac"):
        path.write_bytes(b"")
    args = ["--conf", TINY_YAML, "--corpus-dir", tmp_path / "corpus", "--data-dir", tmp_path / "data"]
    assert main([*map(str, args), "corpus.max_left_out=1.0"]) == 1
    err = capsys.readouterr().err
    assert "part `dev-clean` must have usable utterances, but none of 7 is (20-200-0000: empty audio file;" in err
    assert f"all are in {tmp_path / 'data' / 'manifests' / 'left_out.tsv'}" in err


def test_prepare_manifests_musan_linked_named_otherwise_and_broken(tmp_path, capsys):
    cfg = small_config("corpus.musan=true")
    write_corpus(tmp_path / "LibriSpeech", count=1)
    write_musan(tmp_path / "elsewhere")
    noise = tmp_path / "elsewhere" / "noise" / "fma"
    (tmp_path / "musan" / "noise").mkdir(parents=True)
    for part in ("music", "speech"):
        (tmp_path / "musan" / part).symlink_to(tmp_path / "elsewhere" / part)
    (tmp_path / "musan" / "noise" / "linked").symlink_to(noise)
    (noise / "broken.wav").write_text("no audio")
    (noise / "other.m4a").touch()
    (noise / "unmounted").symlink_to("/nowhere")
    (noise / "._noise-fma-0000.wav").touch()
    (noise / "b").mkdir()
    (noise / "b" / "noise-fma-0000.FLAC").write_bytes((noise / "noise-fma-0000.wav").read_bytes())
    (noise / "noise-fma-0001.WAV").write_bytes((noise / "noise-fma-0000.wav").read_bytes())
    prepare_manifests(cfg, tmp_path / "LibriSpeech", tmp_path / "data")
    found = RecordingSet.from_file(musan_manifest_path(tmp_path / "data", "noise"))
    assert [recording.id for recording in found] == ["noise-fma-0000", "noise-fma-0001"]
    rows = read_left_out(tmp_path / "data")
    assert sorted(row[:2] for row in rows) == [(n, "musan/noise") for n in ("broken", "noise-fma-0000", "other")]
    out = capsys.readouterr().out
    assert "musan noise: 2 recordings used, 3 left out" in out
    assert f"passed over 1: broken link (e.g. {(tmp_path / 'musan').resolve()}/noise/linked/unmounted)" in out
    for path in [*noise.rglob("*.wav"), *noise.rglob("*.WAV"), *noise.rglob("*.FLAC")]:
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="musan` must hold usable recordings, but of its noise none is; empty audio"):
        prepare_manifests(cfg, tmp_path / "LibriSpeech", tmp_path / "data")


def test_main_data_folder_that_cannot_be_written_is_an_error(tmp_path, capsys):
    write_corpus(tmp_path / "corpus", count=1)
    (tmp_path / "data").touch()
    args = ["--conf", TINY_YAML, "--corpus-dir", tmp_path / "corpus", "--data-dir", tmp_path / "data"]
    assert main(list(map(str, args))) == 1
    assert str(tmp_path / "data") in capsys.readouterr().err
