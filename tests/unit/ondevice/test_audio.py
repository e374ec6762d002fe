import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from twopass_kd.ondevice.audio import AudioError, at_pace_of_speech, read_chunks, read_raw_chunks

RATE = 16000


def noise(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(round(seconds * rate)) * 0.1).astype(np.float32)


def tone(seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def read(path: Path, chunk_seconds: float = 0.1):
    notes = []
    chunks = list(read_chunks(str(path), RATE, chunk_seconds, notes.append))
    samples = np.concatenate([np.zeros(0, np.float32), *chunks])
    assert samples.dtype == np.float32
    return samples, notes


@pytest.mark.parametrize(
    "name, subtype", [("x.wav", "PCM_16"), ("x.wav", "PCM_24"), ("x.wav", "FLOAT"), ("x.flac", None)]
)
def test_read_chunks_at_the_models_rate_gives_the_samples(tmp_path, name, subtype):
    x = noise(1.25)
    soundfile.write(tmp_path / name, x, RATE, subtype=subtype)
    samples, notes = read(tmp_path / name)
    np.testing.assert_allclose(samples, x, atol=1e-7 if subtype == "FLOAT" else 1 / 32768)
    assert notes == []


@pytest.mark.parametrize("seconds", [0.02, 0.1, 1.0])
def test_read_chunks_has_the_length_asked_for(tmp_path, seconds):
    soundfile.write(tmp_path / "x.wav", noise(2.345), RATE)
    lengths = [len(c) for c in read_chunks(str(tmp_path / "x.wav"), RATE, seconds)]
    assert set(lengths[:-1]) == {round(seconds * RATE)}
    assert 0 < lengths[-1] <= round(seconds * RATE) and sum(lengths) == round(2.345 * RATE)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_read_chunks_resamples(tmp_path, rate):
    x = tone(1.5, rate)
    soundfile.write(tmp_path / "x.wav", x, rate, subtype="FLOAT")
    samples, notes = read(tmp_path / "x.wav")
    assert abs(len(samples) - 1.5 * RATE) <= 1
    np.testing.assert_allclose(samples[200:-200], tone(1.5, RATE)[200 : len(samples) - 200], atol=1e-4)
    np.testing.assert_allclose(samples, soxr.resample(x, rate, RATE)[: len(samples)], atol=1e-5)
    assert len(notes) == 1 and notes[0].startswith(f"{rate / 1000:g} kHz -> 16 kHz")
    assert ("nothing above" in notes[0]) == (rate < RATE)


def test_read_chunks_resamples_the_same_for_any_chunk(tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(2, 44100), 44100)
    reference, _ = read(tmp_path / "x.wav", 0.1)
    for seconds in (0.001, 0.02, 1.0, 10.0):
        np.testing.assert_array_equal(read(tmp_path / "x.wav", seconds)[0], reference)


def test_read_chunks_takes_the_first_channel(tmp_path):
    left, right = noise(0.5, seed=1), noise(0.5, seed=2)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    samples, notes = read(tmp_path / "x.wav")
    np.testing.assert_array_equal(samples, left)
    assert notes == ["2 channels, the first is used"]


def test_read_chunks_silence(tmp_path):
    x = np.zeros((RATE, 2), np.float32)
    soundfile.write(tmp_path / "x.wav", x[:, 0], RATE)
    samples, notes = read(tmp_path / "x.wav")
    assert len(samples) == RATE and not samples.any() and notes == ["all zeros (digital silence)"]
    x[:, 1] = 0.1
    soundfile.write(tmp_path / "x.wav", x, RATE)
    assert read(tmp_path / "x.wav")[1][-1] == "all zeros (digital silence); channel 2 is not: extract that one"


def test_read_chunks_no_samples(tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(0), RATE)
    samples, notes = read(tmp_path / "x.wav")
    assert len(samples) == 0 and notes == ["no samples"]


def test_read_chunks_wav_whose_recording_was_not_closed(tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(1), RATE)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    data[40:44] = bytes(4)  # the length that is filled in last
    (tmp_path / "x.wav").write_bytes(data)
    samples, notes = read(tmp_path / "x.wav")
    assert len(samples) == 0
    assert notes == [f"no samples, though the file has {len(data)} bytes: its recording was not closed"]


@pytest.mark.parametrize("subtype, width", [("PCM_16", 2), ("PCM_24", 3)])
def test_read_chunks_wav_cut_short(tmp_path, subtype, width):
    x = noise(3)
    soundfile.write(tmp_path / "x.wav", x, RATE, subtype=subtype)
    data = (tmp_path / "x.wav").read_bytes()
    header = data.index(b"data") + 8
    (tmp_path / "x.wav").write_bytes(data[: header + RATE * width + 1])  # in the middle of a sample
    samples, notes = read(tmp_path / "x.wav")
    np.testing.assert_allclose(samples, x[:RATE], atol=1 / 32768)
    assert notes == ["cut short: the header says 3.0 s, the file has 1.0 s"]
    (tmp_path / "x.wav").write_bytes(data[:header])
    samples, notes = read(tmp_path / "x.wav")
    assert len(samples) == 0 and notes[-1] == "no samples"


def test_read_chunks_wav_written_into_a_pipe_is_whole(tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(1), RATE)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    for length in (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000):
        data[40:44] = length.to_bytes(4, "little")
        (tmp_path / "x.wav").write_bytes(data)
        samples, notes = read(tmp_path / "x.wav")
        assert len(samples) == RATE and notes == [], length


def test_read_chunks_flac_cut_short(tmp_path):
    x = noise(3)
    soundfile.write(tmp_path / "x.flac", x, RATE)
    data = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(data[: len(data) // 2])
    samples, notes = read(tmp_path / "x.flac")
    assert 1.0 * RATE < len(samples) < 1.5 * RATE
    np.testing.assert_allclose(samples, x[: len(samples)], atol=1 / 32768)
    assert notes == [f"cut short or damaged: the header says 3.0 s, the file has {len(samples) / RATE:.1f} s"]


def test_read_chunks_flac_damaged_in_the_middle(tmp_path):
    x = noise(3)
    soundfile.write(tmp_path / "x.flac", x, RATE)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    (tmp_path / "x.flac").write_bytes(data)
    samples, notes = read(tmp_path / "x.flac")
    np.testing.assert_allclose(samples, x[: len(samples)], atol=1 / 32768)  # no garbage is passed on
    assert len(notes) == 1 and notes[0].startswith("cut short or damaged: the header says 3.0 s")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_read_chunks_refuses_samples_that_are_not_finite(tmp_path, value):
    x = noise(1)
    x[8000] = value
    soundfile.write(tmp_path / "x.wav", x, RATE, subtype="FLOAT")
    chunks = read_chunks(str(tmp_path / "x.wav"), RATE, 0.1)
    np.testing.assert_array_equal(np.concatenate([next(chunks) for _ in range(5)]), x[:8000])
    with pytest.raises(AudioError, match=rf"x.wav.*sample 8000 \(0.500 s\) is {value}; write the file again"):
        next(chunks)


def test_read_chunks_integers_kept_as_floats_are_said(tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(1) * 32768, RATE, subtype="FLOAT")
    assert "louder than full scale" in read(tmp_path / "x.wav")[1][0]


def test_read_chunks_names_what_is_no_sound_file(tmp_path):
    text, empty, header = tmp_path / "text.wav", tmp_path / "empty.wav", tmp_path / "header.wav"
    text.write_text("this is not audio\n" * 100)
    empty.touch()
    soundfile.write(header, noise(1), RATE)
    header.write_bytes(header.read_bytes()[:30])
    for path, match in (
        (text, "text.wav.*libsndfile reads.*Format not recognised.*convert it"),
        (header, "header.wav.*libsndfile reads.*check that the file is whole"),
        (empty, r"empty.wav.*is empty \(0 bytes\); record or copy it again"),
        (tmp_path, "is a folder; name the files in it"),
        (tmp_path / "missing.wav", "missing.wav.*does not exist; check the name"),
    ):
        with pytest.raises(AudioError, match=match):
            read(path)


def test_read_chunks_too_short_chunks(tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(1), RATE)
    with pytest.raises(ValueError, match=r"`chunk_seconds` \(1e-05\) must be at least one sample"):
        read(tmp_path / "x.wav", 1e-5)


MEMORY = r"""
import re, sys
from twopass_kd.ondevice.audio import read_chunks
samples = sum(len(c) for c in read_chunks(sys.argv[1], 16000, 0.1))
# Not getrusage: its peak begins with that of the process which started this one.
print(samples, re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1])
"""


def test_read_chunks_memory_does_not_grow_with_the_file(tmp_path):
    def peak_kib(seconds):
        with soundfile.SoundFile(tmp_path / "x.wav", "w", 44100, 2) as f:
            for _ in range(seconds // 10):
                f.write(np.zeros((441000, 2), np.float32) + 0.1)
        command = [sys.executable, "-c", MEMORY, str(tmp_path / "x.wav")]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout.split()
        assert int(out[0]) == seconds * RATE
        return int(out[1])

    # 5 minutes: 50 MiB in the file, 18 MiB as the samples that go into the model
    assert peak_kib(300) - peak_kib(10) < 2 * 1024


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Pieces(io.RawIOBase):
    """A pipe into which pieces are written one after another."""

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.pieces:
            return 0
        piece = self.pieces.pop(0)
        buffer[: len(piece)] = piece
        return len(piece)


def raw(*pieces, chunk_seconds=0.1):
    notes = []
    return list(read_raw_chunks(io.BufferedReader(Pieces(pieces)), RATE, chunk_seconds, notes.append)), notes


def test_read_raw_chunks_hands_on_what_has_arrived():
    values = np.array([1, -2, 300, -32768, 32767], "<i2")
    data = values.tobytes()
    chunks, notes = raw(data[:1], data[1:5], data[5:9], data[9:])  # samples are torn apart
    assert [len(c) for c in chunks] == [2, 2, 1] and notes == []
    np.testing.assert_array_equal(np.concatenate(chunks), values.astype(np.float32) / 32768)


def test_read_raw_chunks_are_no_longer_than_asked_for():
    chunks = list(read_raw_chunks(io.BytesIO(bytes([1]) * 8000), RATE, 0.1))
    assert [len(c) for c in chunks] == [1600, 1600, 800]


def test_read_raw_chunks_says_what_is_odd():
    assert raw() == ([], ["no samples"])
    assert raw(bytes(64))[1] == ["all zeros (digital silence)"]
    chunks, notes = raw(b"\1\2\3")
    assert len(chunks) == 1 and notes == ["ends in the middle of a sample: the last byte is ignored"]


def test_read_raw_chunks_refuses_a_sound_file_and_a_terminal(tmp_path):
    soundfile.write(tmp_path / "x.flac", noise(1), RATE)
    with pytest.raises(AudioError, match="header of a sound file; give the file's name"):
        raw((tmp_path / "x.flac").read_bytes()[:3], (tmp_path / "x.flac").read_bytes()[3:1000])
    master, slave = os.openpty()
    with open(slave, "rb") as terminal, pytest.raises(AudioError, match="it is a terminal; pipe audio into it"):
        next(read_raw_chunks(terminal, RATE, 0.1))
    os.close(master)


def test_pace_of_speech_waits_until_a_microphone_would_have_the_chunk():
    begin, heard = time.monotonic(), 0
    for chunk in at_pace_of_speech(iter([np.zeros(800), np.zeros(1600), np.zeros(10)]), 16000):
        heard += len(chunk)
        assert time.monotonic() - begin >= heard / 16000
    assert heard == 2410 and time.monotonic() - begin < 2
