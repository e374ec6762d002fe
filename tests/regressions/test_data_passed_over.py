"""Linked folders, WAV files and files in other folders than LibriSpeech's were passed over, and nothing said so."""

import os
import shutil
from pathlib import Path

import pytest
import soundfile
from lhotse import RecordingSet, SupervisionSet

import find_utterances
from find_utterances import AUDIO_SUFFIXES, find_part
from left_out import read_left_out
from prepare_manifests import main, prepare_manifests
from small_corpus import TINY_YAML, small_config, write_corpus, write_utterance
from twopass_kd.config.schema import ConfigError
from twopass_kd.files.layout import checksums_path, manifest_path
from twopass_kd.files.write import printable

LEFT_OUT = "corpus.max_left_out=1.0"


def prepare(tmp_path, *overrides):
    """Stage 1 of `tmp_path / corpus`; returns the ids used of train-clean, and what is left out of it: id -> reason."""
    data = tmp_path / "data"
    prepare_manifests(small_config(*overrides), tmp_path / "corpus", data)
    recordings = RecordingSet.from_file(manifest_path(data, "recordings", "train-clean"))
    supervisions = SupervisionSet.from_file(manifest_path(data, "supervisions", "train-clean"))
    used = [recording.id for recording in recordings]
    assert used == [supervision.id for supervision in supervisions]
    assert sorted(used) == [
        line.split("\t")[0] for line in checksums_path(data, "train-clean").read_text().splitlines()
    ]
    rows = read_left_out(data)
    return used, {row.utterance: row.reason for row in rows if row.part == "train-clean"}


def test_linked_speakers_parts_and_corpora_are_entered(tmp_path):
    real = write_corpus(tmp_path / "real", count=2)["train-clean"]
    for number in range(4):
        write_utterance(real, f"61-6100-{number:04d}", "THE OLD CAPTAIN")
    subset = tmp_path / "subset"
    (subset / "train-clean").mkdir(parents=True)
    for part in ("dev-clean", "test-clean", "test-other"):
        (subset / part).symlink_to(f"../real/{part}")
    (subset / "train-clean" / "61").symlink_to("../../real/train-clean/61")
    (subset / "train-clean" / "10").mkdir()
    (subset / "train-clean" / "10" / "100").symlink_to(real / "10" / "100")
    (tmp_path / "corpus").symlink_to("subset")
    used, left_out = prepare(tmp_path)
    assert used == ["10-100-0000", "10-100-0001", *(f"61-6100-{number:04d}" for number in range(4))] and not left_out


def test_links_to_what_is_read_already_or_contains_them_are_named_and_not_entered(tmp_path, capsys):
    part = write_corpus(tmp_path / "corpus", count=2)["train-clean"]
    (part / "10" / "up").symlink_to("..")
    (part / "0").symlink_to("10")
    (part / "10" / "all").symlink_to(tmp_path / "corpus")
    (part / "again.trans.txt").symlink_to("10/100/10-100.trans.txt")
    (part / "10-100-0001.flac").symlink_to("10/100/10-100-0001.flac")
    used, left_out = prepare(tmp_path)
    assert used == ["10-100-0000", "10-100-0001"] and not left_out
    out = capsys.readouterr().out
    contains = "passed over 2: link to a folder that contains it, not entered (e.g."
    assert f"{contains} {part}/10/all is {tmp_path}/corpus)" in out or f"{contains} {part}/10/up is {part})" in out
    assert f"passed over 1: folder that is linked twice, read once (e.g. {part}/0 is {part}/10)" in out
    link, file = part / "10-100-0001.flac", part / "10" / "100" / "10-100-0001.flac"
    assert f"passed over 2: file that is linked twice, read once (e.g. {link} is {file})" in out
    assert "2 utterances used, 0 left out, of 2 audio files and 2 transcript lines" in out


def test_speaker_linked_into_two_parts_is_left_out_of_both_and_named(tmp_path):
    folders = write_corpus(tmp_path / "corpus", count=2)
    (folders["train-clean"] / "20").symlink_to(folders["dev-clean"] / "20")
    with pytest.raises(ConfigError, match="part `dev-clean` must have usable utterances"):
        prepare(tmp_path, LEFT_OUT)
    rows = read_left_out(tmp_path / "data")
    assert [row.part for row in rows] == ["train-clean"] * 2 + ["dev-clean"] * 2
    name = "20/200/20-200-0000.flac"
    assert f"duplicate id: train-clean/{name} and dev-clean/{name}, " in rows[0].reason


@pytest.mark.parametrize("suffix", [*sorted(AUDIO_SUFFIXES - {".aifc", ".oga", ".snd"}), ".FLAC", ".Wav", ".OPUS"])
def test_audio_of_any_format_and_case_of_suffix_is_used_and_lhotse_reads_it(tmp_path, suffix):
    part = write_corpus(tmp_path / "corpus", count=1)["train-clean"]
    source = part / "10" / "100" / "10-100-0000.flac"
    samples, rate = soundfile.read(source)
    source.unlink()
    kind = suffix[1:].upper()
    options = {"OPUS": {"format": "OGG", "subtype": "OPUS"}, "AIF": {"format": "AIFF"}}.get(kind, {"format": kind})
    if options["format"] not in soundfile.available_formats():
        pytest.skip(f"libsndfile has no {kind} here")
    soundfile.write(source.with_suffix(suffix), samples, rate, **options)
    used, left_out = prepare(tmp_path)
    assert used == ["10-100-0000"] and not left_out
    (recording,) = RecordingSet.from_file(manifest_path(tmp_path / "data", "recordings", "train-clean"))
    assert recording.load_audio().shape == (1, recording.num_samples) and recording.sampling_rate == 16000


@pytest.mark.parametrize("layout", ["flat", "deep", "by speaker", "audio and transcripts apart"])
def test_audio_and_transcripts_are_found_wherever_they_lie_in_the_part(tmp_path, layout):
    part = write_corpus(tmp_path / "corpus", count=3)["train-clean"]
    transcript, files = part / "10" / "100" / "10-100.trans.txt", sorted(part.rglob("*.flac"))
    to = {
        "flat": (part, part / "train.TRANS.TXT"),
        "deep": (part / "a" / "b" / "c" / "d", part / "a" / "b.trans.txt"),
        "by speaker": (part / "10", part / "10" / "10.Trans.Txt"),
        "audio and transcripts apart": (part / "wav", part / "text" / "all.trans.txt"),
    }[layout]
    for path, target in zip([*files, transcript], [*(to[0] / path.name for path in files), to[1]]):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    used, left_out = prepare(tmp_path)
    assert used == [f"10-100-{number:04d}" for number in range(3)] and not left_out


def test_transcript_files_of_many_forms(tmp_path):
    part = write_corpus(tmp_path / "corpus", count=5)["train-clean"]
    transcript = part / "10" / "100" / "10-100.trans.txt"
    lines = [
        b"\xef\xbb\xbf10-100-0000\tthe  old\r\n",
        b"\r\n",
        b"   10-100-0001   captain \t found\r\n",
        b"\xef\xbb\xbf10-100-0002 \xe2\x80\xa8 a golden\r",  # files joined; a line separator of Unicode
        b"10-100-0003 mirror\n\n\n",
        b"10-100-0004 behind",
    ]
    transcript.write_bytes(b"".join(lines))
    used, left_out = prepare(tmp_path)
    supervisions = SupervisionSet.from_file(manifest_path(tmp_path / "data", "supervisions", "train-clean"))
    assert [s.text for s in supervisions] == ["THE OLD", "CAPTAIN FOUND", "A GOLDEN", "MIRROR", "BEHIND"]
    assert len(used) == 5 and not left_out


def test_names_in_separate_accents_and_lines_in_whole_ones_are_the_same_id(tmp_path):
    part = write_corpus(tmp_path / "corpus", count=1)["train-clean"]
    path = write_utterance(part, "10-100-0001", "A")
    path.rename(path.with_name("Jose\u0301-1.flac"))
    transcript = part / "10" / "100" / "10-100.trans.txt"
    transcript.write_text(transcript.read_text().replace("10-100-0001", "Jos\u00e9-1"))
    used, left_out = prepare(tmp_path)
    assert used == ["10-100-0000", "Jos\u00e9-1"] and not left_out


def test_part_with_every_oddity_adds_up(tmp_path, capsys):
    """What is used and what is left out are together every audio file and every transcript line that is there."""
    part = write_corpus(tmp_path / "corpus", count=3)["train-clean"]
    good = part / "10" / "100" / "10-100-0000.flac"
    for name in ("a/loose.flac", "b/loose.wav", "no line.flac", "tab\tand\nend.flac", "m4a-1.M4A", "m4a-2.m4a"):
        (part / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(good, part / name)
    shutil.copyfile(good, os.fsencode(part) + b"/latin-\xe9.flac")
    shutil.copyfile(good, good.with_suffix(".sph"))  # beside one that is used
    shutil.copyfile(good, part / "._10-100-0000.flac")
    (part / "gone.flac").symlink_to("nowhere")
    (part / "unmounted").symlink_to("/nowhere/speaker")
    (part / "folder.flac").mkdir()
    os.mkfifo(part / "pipe.wav")
    (part / "README.txt").write_text("not a transcript")
    lines = [
        b"m4a-1 A",
        b"gone A",
        b"folder A",
        b"pipe A",
        b"a/b A",
        b"only-an-id",
        b"latin CAF\xe9",
        b"twice A",
        b"twice B",
    ]
    (part / "more.trans.txt").write_bytes(b"\n".join(lines))
    (part / "wide.trans.txt").write_bytes("x A".encode("utf-16"))
    (part / "lost.trans.txt").symlink_to("nowhere")
    os.mkfifo(part / "pipe.trans.txt")
    used, left_out = prepare(tmp_path, LEFT_OUT)
    assert used == ["10-100-0000", "10-100-0001", "10-100-0002"]
    assert {name: reason.split(":")[0] for name, reason in left_out.items()} == {
        "loose": "duplicate id",
        "no line": "audio without transcript",
        "tab\\tand\\nend": "audio without transcript",
        "latin-\\udce9": "audio without transcript",
        "m4a-1": "audio of a format that is not read, convert it to FLAC or WAV",
        "m4a-2": "audio of a format that is not read, convert it to FLAC or WAV",
        "gone": "broken link",
        "unmounted": "broken link",
        "folder": "transcript without audio",
        "pipe": "not a file",
        "a/b": "transcript without audio",
        "only-an-id": "empty transcript",
        "latin": "transcript is not UTF-8",
        "twice": "duplicate id",
        "wide.trans.txt": "transcript file that is not UTF-8 text (UTF-16?)",
        "lost.trans.txt": "transcript file that cannot be read",
        "pipe.trans.txt": "transcript file that cannot be read",
    }
    assert left_out["latin"] == "transcript is not UTF-8: more.trans.txt:7"
    assert left_out["twice"] == "duplicate id: train-clean/more.trans.txt:8 and train-clean/more.trans.txt:9"
    assert left_out["folder"] == "transcript without audio: more.trans.txt:3 (folder.flac is no audio file)"
    there = find_part((part).resolve())
    audio = {"m4a-1", "m4a-2", *map(printable, there.audio)}
    all_there = audio | set(there.lines) | set(there.unreadable) | {"unmounted"}
    assert all_there == {*used, *left_out} and not set(used) & set(left_out)
    out = capsys.readouterr().out
    assert "train-clean: 3 utterances used, 17 left out, of 10 audio files and 12 transcript lines" in out
    assert "passed over 1: file that macOS puts beside others" in out
    assert "passed over 1: other file or folder *.txt (e.g. README.txt)" in out
    assert "passed over 1: audio of a format that is not read, beside one that is (e.g. 10/100/10-100-0000.sph)" in out


def test_part_without_transcripts_says_what_is_there_instead(tmp_path):
    part = write_corpus(tmp_path / "corpus", count=3)["train-clean"]
    (part / "10" / "100" / "10-100.trans.txt").rename(part / "text")
    for path in part.rglob("*.flac"):
        path.with_suffix(".lab").touch()
    expected = (
        r"`train-clean` must have transcripts.* it has 3 audio files, 3 \.lab \(10/100/10-.*\.lab\), 1 text \(text\)"
    )
    with pytest.raises(ConfigError, match=expected):
        prepare(tmp_path)


def test_folder_that_cannot_be_read_is_an_error_that_names_it(tmp_path, capsys, monkeypatch):
    part = write_corpus(tmp_path / "corpus", count=2)["train-clean"]
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "100":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(find_utterances.os, "scandir", refuse)
    args = ["--conf", TINY_YAML, "--corpus-dir", tmp_path / "corpus", "--data-dir", tmp_path / "data"]
    assert main(list(map(str, args))) == 1
    expected = f"`{part}/10/100` must be a folder that can be read (Permission denied)"
    assert expected in capsys.readouterr().err
