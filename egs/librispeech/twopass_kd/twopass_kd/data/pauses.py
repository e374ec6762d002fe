"""Pauses before, in and after utterances, as live recordings have them: what a streaming recogniser hears first."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lhotse.cut import Cut

from twopass_kd.config.log_mel import FRAME_SHIFT
from twopass_kd.config.schema import AugmentConfig
from twopass_kd.data.noise import COLOURS, ColouredNoise

EDGE = 20  # frames at the ends of an utterance in which no pause is put
WINDOW = 10  # frames over which the quietest place is looked for
SHIFTS = 6  # frames, all that subsampling by 6 can begin with
SILENCE = np.log(np.finfo(np.float32).eps)  # log-mel energy of nothing but zeros, as Lhotse and Kaldi have it


@dataclass(frozen=True)
class Pause:
    """What an utterance gets: frames of quiet noise before, in and after it; its level in dBFS, and colour."""

    before: int
    within: int
    after: int
    level: float
    colour: float

    @property
    def seconds(self) -> float:
        return (self.before + self.within + self.after) * FRAME_SHIFT


class Pauses:
    """Draws the pauses of each utterance and puts them in.

    An utterance without a pause before it begins up to five frames later instead: an encoder that takes several frames
    as one would know words by where in its frames they begin, as recordings that are cut alike make it easy to.

    What an utterance gets depends on the seed, the epoch and its id alone, so that a sampler can count with pauses that
    another process puts in later.
    """

    def __init__(self, cfg: AugmentConfig, seed: int, epoch: int) -> None:
        self.cfg, self.seed, self.epoch = cfg, seed, epoch

    def draw(self, cut_id: str) -> Pause:
        rng = random.Random(f"{self.seed} {self.epoch} {cut_id} pauses")
        before, within, after = (
            round(rng.uniform(0, self.cfg.max_pause) / FRAME_SHIFT) if rng.random() < self.cfg.pauses else 0
            for _ in range(3)
        )
        if self.cfg.pauses > 0 and before == 0:
            before = rng.randrange(SHIFTS)
        return Pause(before, within, after, rng.uniform(*self.cfg.pause_level), rng.uniform(*COLOURS))

    def insert(
        self, features: np.ndarray, pause: Pause, begins: Sequence[int], noise: ColouredNoise, rng: random.Random
    ) -> np.ndarray:
        """Log-mel features (T, F) with a pause: (T + its frames, F).

        The one within is before any of the frames `begins`, where words begin; where nobody knows those, at the
        quietest place: between words, or at a stop in one.
        """
        sizes = (pause.before, pause.within, pause.after)
        rows = noise.of_colour(sum(sizes), pause.colour, pause.level, rng)
        before, within, after = np.split(np.maximum(rows, SILENCE), np.cumsum(sizes)[:2])
        place = 0
        if pause.within:
            place = rng.choice(begins) if begins else quietest(features)
        return np.concatenate([before, features[:place], within, features[place:], after])


def word_begins(cut: Cut) -> list[int]:
    """The frames in which words of a cut begin, but for the first word; none where it is not known."""
    words = (cut.supervisions[0].alignment or {}).get("word", [])
    begins = [round(word.start / FRAME_SHIFT) for word in words if word.symbol][1:]
    return [begin for begin in begins if 0 < begin < cut.num_frames]


def quietest(features: np.ndarray) -> int:
    """The frame of log-mel features (T, F) around which the least energy is; 0 where they are too short to say."""
    inner = np.exp(features[EDGE:-EDGE]).sum(axis=1)
    if len(inner) < WINDOW:
        return 0
    return EDGE + int(np.convolve(inner, np.ones(WINDOW), "valid").argmin()) + WINDOW // 2
