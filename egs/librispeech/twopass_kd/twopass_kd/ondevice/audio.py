"""Reads recordings of any rate and number of channels in chunks at the model's rate, in constant memory."""

import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

Note = Callable[[str], None]
Chunks = Iterator[np.ndarray]  # each (num_samples,) float32

_BLOCK_SECONDS = 0.1  # read at once; at most this much is lost before the place where a flac file is cut
_UNKNOWN_LENGTH = 0x7FFF0000  # bytes; programs that write wav into a pipe claim this much or more
_LARGEST_SAMPLE = 1e12  # its square is still a float32; integers kept as floats are below
_RATES = (1000, 1000000)  # Hz that a header may have
_FULL_SCALE = 2.0  # lossy codecs overshoot 1 a little; integers kept as floats are far above
_LARGEST_HEADER = 8192  # bytes; a file larger than this has something in it
_READ_BYTES = 65536  # at once from standard input
_HEADERS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b"ID3")


class AudioError(ValueError):
    """A recording cannot be read: names it and says what to do."""


def read_chunks(path: str, sampling_rate: int, chunk_seconds: float, note: Note | None = None) -> Chunks:
    """Read the first channel of a sound file, resampled (soxr's streaming resampler, high quality).

    Args:
      path: what soundfile reads: wav, flac, ...
      sampling_rate: of the model (Hz).
      chunk_seconds: length of a chunk.
      note: called with what the user should know ("44.1 kHz -> 16 kHz", "cut short: ..."), some of it at the end.
    Returns:
      Chunks of (round(chunk_seconds * sampling_rate),) float32 in [-1, 1]; the last one may be shorter.
    Raises:
      AudioError: at the first chunk where the file cannot be opened; later where samples are not finite or very large.
    """
    note = note or (lambda message: None)
    with _open(path) as f:
        if not _RATES[0] <= f.samplerate <= _RATES[1]:
            raise AudioError(
                f"`{path}` must have a sampling rate from 1 to 1000 kHz, but its header says {f.samplerate} Hz; "
                "correct that"
            )
        if f.format == "RAW":  # libsndfile goes by the name's ending
            note(f"has no header; taken for {f.subtype} at {f.samplerate / 1000:g} kHz")
        if f.samplerate != sampling_rate:
            narrow = f"; it has nothing above {f.samplerate / 2000:g} kHz" if f.samplerate < sampling_rate else ""
            note(f"{f.samplerate / 1000:g} kHz -> {sampling_rate / 1000:g} kHz{narrow}")
        if f.channels > 1:
            note(f"{f.channels} channels, the first is used")
        samples = _resampled(_first_channel(f, path, note), f.samplerate, sampling_rate)
        yield from _regroup(samples, _chunk_size(chunk_seconds, sampling_rate))


def read_raw_chunks(stream: BinaryIO, sampling_rate: int, chunk_seconds: float, note: Note | None = None) -> Chunks:
    """Read raw 16-bit little-endian mono samples at the model's rate as they arrive, e.g. from a microphone.

    Args:
      stream: a buffered binary stream such as `sys.stdin.buffer`.
      sampling_rate, chunk_seconds, note: as for `read_chunks`.
    Returns:
      Chunks of at most (round(chunk_seconds * sampling_rate),) float32 in [-1, 1], none of them empty; a chunk is
      handed on as soon as anything is there.
    Raises:
      AudioError: the stream is a terminal, or a sound file with its header.
    """
    note = note or (lambda message: None)
    if stream.isatty():
        raise AudioError(
            "`-` (standard input) must be raw 16-bit samples, it is a terminal; pipe audio into it, "
            f"e.g. `arecord -f S16_LE -r {sampling_rate} -c 1 -t raw | ...`"
        )
    size = 2 * _chunk_size(chunk_seconds, sampling_rate)
    held, samples, peak, begin = b"", 0, 0.0, b""
    while data := stream.read1(min(size, _READ_BYTES)):
        if len(begin) < 4:
            begin += data[:4]
            if begin.startswith(_HEADERS):
                raise AudioError(
                    "`-` (standard input) must be raw 16-bit samples, it has the header of a sound file; "
                    "give the file's name instead of `-`"
                )
        held += data
        even = len(held) // 2 * 2
        if even:
            block = np.frombuffer(held[:even], dtype="<i2").astype(np.float32) / 32768
            held = held[even:]
            samples += len(block)
            peak = max(peak, float(np.abs(block).max()))
            yield block
    if held:
        note("ends in the middle of a sample: the last byte is ignored")
    if not samples:
        note("no samples")
    elif not peak:
        note("all zeros (digital silence)")


def at_pace_of_speech(chunks: Chunks, sampling_rate: int) -> Chunks:
    """Hand each chunk on when a microphone would: not before as much time has passed as it and those before it last."""
    begin, samples = time.monotonic(), 0
    for chunk in chunks:
        samples += len(chunk)
        time.sleep(max(0.0, begin + samples / sampling_rate - time.monotonic()))
        yield chunk


def _open(path: str) -> soundfile.SoundFile:
    if not os.path.exists(path):
        where = f"it is a link to {os.readlink(path)}, which" if os.path.islink(path) else "it"
        raise AudioError(f"`{path}` must be a sound file, {where} does not exist; check the name")
    if os.path.isdir(path):
        raise AudioError(f"`{path}` must be a sound file, it is a folder; name the files in it, e.g. {path}/*.wav")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise AudioError(f"`{path}` must be a sound file, it is empty (0 bytes); record or copy it again")
    kind = os.stat(path).st_mode
    is_named_pipe = stat.S_ISFIFO(kind) and os.path.exists(os.path.realpath(path))  # not the pipe of a shell's <(...)
    if is_named_pipe or stat.S_ISSOCK(kind) or stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
        raise AudioError(
            f"`{path}` must be a sound file, it is a named pipe, a socket or a device; write what comes from it into a "
            "file, or give raw samples to `-`"
        )
    if not os.access(path, os.R_OK):
        raise AudioError(f"`{path}` must be readable, its permissions forbid it; change them with chmod")
    try:
        return soundfile.SoundFile(os.fsencode(path))  # a name need not be UTF-8
    except TypeError as e:
        raise AudioError(
            f"`{path}` must be a sound file with a header, such as wav or flac; raw 16-bit mono samples at the model's "
            f"rate go to `-`: `twopass-recognize MODEL - < {shlex.quote(path)}`"
        ) from e
    except soundfile.LibsndfileError as e:
        raise AudioError(
            f"`{path}` must be sound that libsndfile reads, such as wav or flac ({e.error_string.rstrip('.')}); check "
            f"that the file is whole, or convert it, e.g. `ffmpeg -i {shlex.quote(path)} out.wav`"
        ) from e


def _first_channel(f: soundfile.SoundFile, path: str, note: Note) -> Iterator[np.ndarray]:
    """Blocks of the first channel as they lie in the file; notes at the end what was odd."""
    frames, peak, damage = 0, np.zeros(f.channels), ""
    while True:
        try:
            block = f.read(max(1, round(_BLOCK_SECONDS * f.samplerate)), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:  # a flac file that ends too early, or with damaged blocks
            damage = " or damaged"
            break
        if not len(block):
            break
        finite = np.abs(block[:, 0]) < _LARGEST_SAMPLE  # not so NaN and infinity
        if not finite.all():
            where = frames + int(np.argmin(finite))
            raise AudioError(
                f"`{path}` must have samples in [-1, 1], sample {where} ({where / f.samplerate:.3f} s) is "
                f"{block[where - frames, 0]}; write the file again without NaN, infinity and the like"
            )
        frames += len(block)
        peak = np.maximum(peak, np.abs(block).max(axis=0))
        yield block[:, 0]
    claimed, known = _claimed_frames(f)
    if damage or frames < claimed:
        says = f"the header says {claimed / f.samplerate:.1f} s" if known else "the header promises more"
        note(f"cut short{damage}: {says}, the file has {frames / f.samplerate:.1f} s")
    if not frames:
        size = os.path.getsize(path)
        unclosed = f", though the file has {size} bytes: its recording was not closed" if size > _LARGEST_HEADER else ""
        note(f"no samples{unclosed}")
    elif not peak[0]:
        elsewhere = np.flatnonzero(np.nan_to_num(peak))
        also = f"; channel {elsewhere[0] + 1} is not: extract that one" if len(elsewhere) else ""
        note(f"all zeros (digital silence){also}")
    elif peak[0] > _FULL_SCALE:
        note(f"louder than full scale (peak {peak[0]:.6g}): divide the samples so that they lie in [-1, 1]")


def _claimed_frames(f: soundfile.SoundFile) -> tuple[int, bool]:
    """Frames of which the header speaks, and whether that is exact.

    libsndfile corrects the length of a wav or au file that ends early, and leaves a remark like "data : 160000 (should
    be 53304)"; of a flac or mp3 file `frames` is what the header says.
    """
    found = re.search(r"data(?: size)? *: (\d+) \(should be (\d+)\)", f.extra_info, re.IGNORECASE)
    if not found or int(found[1]) >= _UNKNOWN_LENGTH:
        return f.frames, True
    claimed, present = int(found[1]), int(found[2])
    return (round(f.frames * claimed / present), True) if f.frames else (1, False)


def _resampled(blocks: Iterator[np.ndarray], rate: int, new_rate: int) -> Iterator[np.ndarray]:
    if rate == new_rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, new_rate, 1, dtype="float32")
    for block in blocks:
        yield resampler.resample_chunk(np.ascontiguousarray(block))
    yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _regroup(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Blocks of any length -> chunks of `size`; the last one may be shorter."""
    held = np.zeros(0, dtype=np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held


def _chunk_size(seconds: float, sampling_rate: int) -> int:
    size = round(seconds * sampling_rate)
    if size < 1:
        raise ValueError(f"`chunk_seconds` ({seconds}) must be at least one sample (1 / {sampling_rate}); enlarge it")
    return size
