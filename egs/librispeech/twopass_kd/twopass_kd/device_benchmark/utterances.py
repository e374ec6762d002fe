"""The list of utterances that the on-device measurements read, and their audio."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from twopass_kd.files.read import read_lines
from twopass_kd.files.write import write_text_atomically

_MISSING = 0.01  # seconds of audio that may lack at an utterance's end, by rounding


@dataclass(frozen=True)
class Utterance:
    """Where an utterance's audio is (`start` and `duration` in seconds of a channel, from 0, of the file `audio`), and
    what is said in it."""

    id: str
    set: str
    audio: str
    start: float
    duration: float
    text: str
    channel: int = 0


def write_utterances(utterances: Sequence[Utterance], path: Path) -> None:
    """Write one JSON object on each line."""
    lines = (json.dumps(asdict(u), ensure_ascii=False) + "\n" for u in utterances)
    write_text_atomically(path, "".join(lines))


def read_utterances(path: Path) -> list[Utterance]:
    """The inverse of `write_utterances`.

    Raises:
      ValueError: naming file and line.
    """
    utterances = []
    for number, line in enumerate(read_lines(path, str(path), "run stage 10 again"), start=1):
        try:
            utterances.append(Utterance(**json.loads(line)))
        except (ValueError, TypeError) as e:
            raise ValueError(f"{path}, line {number}: must be an utterance as JSON ({e})") from e
    if not utterances:
        raise ValueError(f"{path} must have at least one utterance")
    return utterances


def read_audio(utterance: Utterance, sampling_rate: int) -> np.ndarray:
    """The audio of an utterance, (num_samples,) float32 in [-1, 1] at `sampling_rate`.

    Raises:
      ValueError: naming utterance and file where the audio cannot be read.
    """
    try:
        with soundfile.SoundFile(os.fsencode(utterance.audio)) as f:
            rate = f.samplerate
            f.seek(round(utterance.start * rate))
            samples = f.read(round(utterance.duration * rate), dtype="float32", always_2d=True)[:, utterance.channel]
    except Exception as e:  # of libsndfile, numpy and Python
        raise ValueError(
            f"utterance {utterance.id}: {utterance.audio} must be readable audio ({e}); bring it back or prepare the "
            "data again (stage 1)"
        ) from e
    if len(samples) < utterance.duration * rate - 1 - _MISSING * rate or not np.isfinite(samples).all():
        raise ValueError(
            f"utterance {utterance.id}: {utterance.audio} must have {utterance.duration:g} s from {utterance.start:g} s"
            f" on, all finite, but has {len(samples) / rate:g} s; bring it back or prepare the data again (stage 1)"
        )
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate)
    return np.ascontiguousarray(samples)
