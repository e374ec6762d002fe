"""Looks at every utterance of a LibriSpeech-layout part and says which are usable, and why the others are not."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import soundfile
from tqdm import tqdm

SILENCE_RMS = 1e-4  # -80 dB of full scale: nothing that anybody said is as quiet


class LeftOut(NamedTuple):
    """One line of left_out.tsv."""

    utterance: str
    part: str
    reason: str


@dataclass
class PartScan:
    """What a part holds.

    texts: utterance id -> transcript in LibriSpeech's form (upper case, single spaces), usable utterances only.
    left_out: the others.
    noted: utterance id -> what is unusual but handled (sampling rate, channels).
    """

    part: str
    texts: Dict[str, str] = field(default_factory=dict)
    left_out: List[LeftOut] = field(default_factory=list)
    noted: Dict[str, str] = field(default_factory=dict)


def audio_path(part_dir: Path, utterance: str) -> Path:
    """Where LibriSpeech keeps an utterance: `<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac`."""
    return part_dir.joinpath(*utterance.split("-")[:-1]) / f"{utterance}.flac"


def check_audio(path: Path, min_duration: float, max_duration: float, sampling_rate: int) -> Tuple[Optional[str], str]:
    """Decode a whole file, since a truncated one has a healthy header.

    Args:
      min_duration, max_duration: seconds.
      sampling_rate: Hz, of the features; another one in the file is only noted.
    Returns:
      (why the file cannot be used or None, what is unusual about it or "").
    """
    if path.stat().st_size == 0:
        return "empty audio file", ""
    try:
        info = soundfile.info(path)
    except soundfile.SoundFileError as e:
        return f"not a readable audio file ({getattr(e, 'error_string', e)})", ""
    try:
        samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as e:
        return f"truncated or damaged audio ({getattr(e, 'error_string', e)})", ""
    if len(samples) < info.frames:
        return f"truncated audio ({len(samples)} of {info.frames} samples)", ""
    if len(samples) == 0:
        return "audio without samples", ""
    seconds = len(samples) / info.samplerate
    if float(np.sqrt(np.mean(samples[:, 0] ** 2))) < SILENCE_RMS:
        return "silence", ""
    if seconds < min_duration:
        return f"shorter than corpus.min_duration ({min_duration:g} s)", ""
    if seconds > max_duration:
        return f"longer than corpus.max_duration ({max_duration:g} s)", ""
    notes = []
    if info.channels > 1:
        notes.append(f"{info.channels} channels, the first is used")
    if info.samplerate != sampling_rate:
        notes.append(f"{info.samplerate} Hz, resampled to {sampling_rate} Hz in stage 2")
    return None, "; ".join(notes)


def _check_job(job: Tuple[Path, float, float, int]) -> Tuple[Optional[str], str]:
    return check_audio(*job)


def read_transcripts(part_dir: Path) -> Tuple[List[Tuple[str, str]], Dict[str, str]]:
    """All transcript lines of a part.

    Returns:
      (utterance id, text in LibriSpeech's form) per line, and the ids whose line is unusable -> why.
    """
    lines: List[Tuple[str, str]] = []
    bad: Dict[str, str] = {}
    for path in sorted(part_dir.rglob("*.trans.txt")):
        for raw in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines():
            if not raw.strip():
                continue
            utterance, _, rest = raw.strip().partition(b" ")
            name = utterance.decode("utf-8", "replace")
            try:
                text = " ".join(rest.decode("utf-8").upper().split())
            except UnicodeDecodeError:
                bad[name] = "transcript is not UTF-8"
                text = ""
            if not text:
                bad.setdefault(name, "empty transcript")
            lines.append((name, text))
    return lines, bad


def duplicate_ids(corpus_dir: Path, parts: Sequence[str]) -> set:
    """Utterance ids with more than one transcript line or more than one audio file, counted over all `parts`."""
    lines: Counter = Counter()
    files: Counter = Counter()
    for part in parts:
        lines.update(name for name, _ in read_transcripts(corpus_dir / part)[0])
        files.update(path.stem for path in (corpus_dir / part).rglob("*.flac"))
    return {name for counts in (lines, files) for name, count in counts.items() if count > 1}


def scan_part(
    corpus_dir: Path,
    part: str,
    duplicates: set,
    min_duration: float,
    max_duration: float,
    sampling_rate: int,
    num_jobs: int,
) -> PartScan:
    """Check every utterance of `<corpus_dir>/<part>`, the audio in `num_jobs` processes.

    An id in `duplicates` is left out: which of its texts or files is the right one cannot be known.
    """
    part_dir = corpus_dir / part
    scan = PartScan(part)
    lines, bad = read_transcripts(part_dir)
    found = {path.stem: path for path in sorted(part_dir.rglob("*.flac"))}
    to_check: Dict[str, str] = {}
    seen: set = set()
    for name, text in lines:
        if name in seen:
            continue
        seen.add(name)
        if name in duplicates:
            reason = "duplicate id"
        elif name in bad:
            reason = bad[name]
        elif name not in found:
            reason = "transcript without audio"
        elif found[name] != audio_path(part_dir, name):
            reason = f"audio is not in the folder of its id ({audio_path(part_dir, name).relative_to(part_dir)})"
        else:
            to_check[name] = text
            continue
        scan.left_out.append(LeftOut(name, part, reason))
    for name in found:
        if name not in seen:
            reason = "duplicate id" if name in duplicates else "audio without transcript"
            scan.left_out.append(LeftOut(name, part, reason))
    jobs = [(found[name], min_duration, max_duration, sampling_rate) for name in to_check]
    with ProcessPoolExecutor(num_jobs) as pool:
        results = pool.map(_check_job, jobs, chunksize=32)
        for (name, text), (reason, note) in zip(
            to_check.items(), tqdm(results, total=len(jobs), desc=f"Checking {part}", unit="utt")
        ):
            if reason is not None:
                scan.left_out.append(LeftOut(name, part, reason))
                continue
            scan.texts[name] = text
            if note:
                scan.noted[name] = note
    return scan
