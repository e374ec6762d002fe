"""Looks at every utterance of a part and says which are usable, and why the others are not."""

import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from lhotse.supervision import AlignmentItem
from tqdm import tqdm

from find_utterances import OTHER_AUDIO_SUFFIXES, PartFiles, broken_link, utterance_id
from left_out import LeftOut
from twopass_kd.config.schema import ConfigError
from twopass_kd.data.cut_checks import alignment_fault

SILENCE_RMS = 1e-4  # -80 dB of full scale: nothing that anybody said is as quiet
# What libsndfile logs of a header that promises more samples than there are; it does not fail for these formats.
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFFF000  # bytes; programs that write into a pipe put this or more into the header
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX
OTHER_FORMAT = "audio of a format that is not read, convert it to FLAC or WAV"


@dataclass
class PartScan:
    """What of a part is used.

    texts: utterance id -> transcript in LibriSpeech's form (upper case, single spaces), usable utterances only.
    audio: utterance id -> its file, usable utterances only.
    alignments: utterance id -> when its words are said, usable utterances only, as far as files say so.
    checksums: utterance id -> CRC-32 of its file, usable utterances only.
    left_out: the others.
    noted: utterance id -> what is unusual but handled (sampling rate, channels).
    remarks: (what of the folder was passed over, where).
    num_files, num_lines: audio files of readable formats and transcript lines that are there.
    """

    part: str
    texts: dict[str, str] = field(default_factory=dict)
    audio: dict[str, Path] = field(default_factory=dict)
    alignments: dict[str, list[AlignmentItem]] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    noted: dict[str, str] = field(default_factory=dict)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    num_files: int = 0
    num_lines: int = 0

    def leave_out(self, name: str, reason: str) -> None:
        """Add a line for left_out.tsv."""
        self.left_out.append(LeftOut(name, self.part, reason))


def why_no_file(path: Path) -> str | None:
    """Why a path is not that of a file with something in it, which a manifest can name; None where it is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"path that is not UTF-8: {path}"
    if broken_link(path):
        return broken_link(path)
    if not path.is_file():
        return "not a file"
    return "empty audio file" if path.stat().st_size == 0 else None


def _what(error: Exception) -> str:
    """What an exception says, on one line; its name where it says nothing."""
    return " ".join(str(getattr(error, "error_string", "") or error).split()) or type(error).__name__


def _has_last_page(path: Path) -> bool:
    """Whether an Ogg file ends in a whole page that says it is the last (RFC 3533, section 6)."""
    data = path.read_bytes()[-(1 << 17) :]  # a page has less than 64 KiB
    start = data.rfind(b"OggS")
    page = data[start:] if start >= 0 else b""
    return len(page) >= 27 and bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def check_audio(path: Path, min_duration: float, max_duration: float, sampling_rate: int) -> tuple[str | None, str]:
    """Decode a whole file, since a truncated one has a healthy header.

    Args:
      min_duration, max_duration: seconds.
      sampling_rate: Hz, of the features; another one in the file is only noted.
    Returns:
      (why the file cannot be used or None, what is unusual about it or ""). It raises nothing.
    """
    try:
        reason = why_no_file(path)
        if reason is not None:
            return reason, ""
        info = soundfile.info(path, verbose=True)
        seconds = info.frames / info.samplerate
    except Exception as e:
        return f"not a readable audio file: {_what(e)}", ""
    if info.frames == _UNKNOWN_FRAMES:
        return "header does not say how long the audio is, write the file anew", ""
    if seconds > max_duration:  # decoded, it might not fit into memory
        return f"longer than corpus.max_duration ({max_duration:g} s)", ""
    try:
        samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as e:
        return f"truncated or damaged audio: {_what(e)}", ""
    if len(samples) < info.frames:
        return f"truncated audio: {len(samples)} of {info.frames} samples", ""
    for promised, there in _SHORT_CHUNK.findall(info.extra_info):
        if int(there) < int(promised) < _UNKNOWN_SIZE:
            return f"truncated audio: {there} of {promised} bytes", ""
    if info.format == "OGG" and not _has_last_page(path):
        return "truncated audio: the last Ogg page is missing, or the file was not closed", ""
    if len(samples) == 0:
        return "audio without samples", ""
    if not np.isfinite(samples).all():
        return "samples that are not finite numbers", ""
    if float(np.sqrt(np.mean(samples[:, 0] ** 2))) < SILENCE_RMS:
        return "silence", ""
    if seconds < min_duration:
        return f"shorter than corpus.min_duration ({min_duration:g} s)", ""
    notes = []
    if info.channels > 1:
        notes.append(f"{info.channels} channels, the first is used")
    if info.samplerate != sampling_rate:
        notes.append(f"{info.samplerate} Hz, resampled to {sampling_rate} Hz in stage 2")
    return None, "; ".join(notes)


def _check_job(job: tuple[Path, float, float, int]) -> tuple[str | None, str, int]:
    """What check_audio says, and the CRC-32 of a usable file's bytes."""
    reason, note = check_audio(*job)
    if reason is not None:
        return reason, note, 0
    try:
        return reason, note, zlib.crc32(job[0].read_bytes())
    except OSError as e:
        return f"not a readable audio file: {_what(e)}", "", 0


def scan_part(
    part: str,
    files: PartFiles,
    duplicates: Mapping[str, str],
    min_duration: float,
    max_duration: float,
    sampling_rate: int,
    num_jobs: int,
) -> PartScan:
    """Check every utterance of a part, the audio in `num_jobs` processes.

    An id in `duplicates` is left out: which of its texts or files is the right one cannot be known.

    Raises:
      ConfigError: a process that decodes was killed.
    """
    scan = _pair(part, files, duplicates)
    names, done = list(scan.audio), 0
    jobs = [(scan.audio[name], min_duration, max_duration, sampling_rate) for name in names]
    try:
        with ProcessPoolExecutor(num_jobs) as pool:
            results = pool.map(_check_job, jobs, chunksize=32)
            for result in tqdm(results, total=len(jobs), desc=f"Checking {part}", unit="utt"):
                (reason, note, checksum), name = result, names[done]
                done += 1
                if reason is not None:
                    scan.leave_out(name, reason)
                    del scan.texts[name], scan.audio[name]
                    continue
                scan.checksums[name] = checksum
                items = files.alignments.get(name)
                fault = None if items is None else alignment_fault(items, scan.texts[name])
                if items is not None and fault is None:
                    scan.alignments[name] = items
                if note or fault:
                    scan.noted[name] = "; ".join(filter(None, [note, fault and f"{fault}, not used"]))
    except BrokenProcessPool as e:
        raise ConfigError(
            f"a process that decoded audio of part `{part}` was killed at {names[done]} or soon after it; where memory"
            f" is short use a smaller --nj (it is {num_jobs})"
        ) from e
    return scan


def _pair(part: str, files: PartFiles, duplicates: Mapping[str, str]) -> PartScan:
    """A scan with every utterance that has one text and one file, and all others left out."""
    num_files, num_lines = (sum(map(len, there.values())) for there in (files.audio, files.lines))
    scan = PartScan(part, remarks=list(files.remarks), num_files=num_files, num_lines=num_lines)
    others, others_audio = {}, {}
    for path in files.others:
        name, where = utterance_id(path.stem), files.inside(path)
        if path.suffix.lower() in OTHER_AUDIO_SUFFIXES:
            others_audio[name] = f"{others_audio[name]} and {where}" if name in others_audio else where
        elif broken_link(path):
            scan.leave_out(where, broken_link(path))
        elif not path.name.startswith("."):
            others[name] = where
            kind = f"file or folder *{path.suffix}" if path.suffix else "file without suffix"
            scan.remarks.append((f"other {kind}", where))
    for name, reason in files.unreadable.items():
        scan.leave_out(name, reason)
    for name in dict.fromkeys([*files.lines, *files.audio, *others_audio]):
        line = files.lines[name][0] if name in files.lines else None
        path = files.audio[name][0] if name in files.audio else None
        if path and name in others_audio:
            scan.remarks.append(("audio of a format that is not read, beside one that is", others_audio[name]))
        if not line and not path:
            reason = f"{OTHER_FORMAT}: {others_audio[name]}"
        elif name in duplicates:
            reason = f"duplicate id: {duplicates[name]}"
        elif not line:
            reason = f"audio without transcript: {files.inside(path)}"
        elif line.problem:
            reason = line.problem
        elif path:
            scan.texts[name], scan.audio[name] = line.text, path
            continue
        elif name in others_audio:
            reason = f"{OTHER_FORMAT}: {others_audio[name]}"
        else:
            there = f" ({others[name]} is no audio file)" if name in others else ""
            reason = f"transcript without audio: {line.place}{there}"
        scan.leave_out(name, reason)
    return scan
