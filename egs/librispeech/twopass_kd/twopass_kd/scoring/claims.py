"""Verdicts on the claims of a config: is a student as good as its teacher, within the margin that was declared?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from twopass_kd.config.schema import ClaimConfig, Config
from twopass_kd.files.decode_json import Pass
from twopass_kd.files.results_json import Claim
from twopass_kd.scoring.crossed import crossed
from twopass_kd.scoring.wer import (
    MIN_SPEAKERS,
    Transcript,
    cluster_sums,
    clusters,
    error_counts,
    interval,
    paired,
    resample,
)

LEVEL = 0.05
POWER = 0.8
MIN_SEEDS = 3  # with two the test below calls up to 10% instead of 5%
MOST_SEEDS = 100  # that anybody would train
_CHUNK = 2**22  # signs held in memory at a time

Passes = Mapping[Pass, Sequence[Transcript] | None]  # transcripts of one system and set; None: it has no such pass
Systems = Mapping[str, Mapping[str, Passes]]  # system -> set -> passes
Speakers = Mapping[str, Mapping[str, str]]  # set -> cut id -> speaker


def judge_claims(cfg: Config, seeds: Sequence[Systems], speakers: Speakers) -> list[Claim]:
    """Every claim on every set that it is about.

    A claim is of a distance from zero: of the difference of two WERs, less the margin. With one seed its p-value is
    that of a wild cluster bootstrap over speakers, which stays honest with few of them; with several it is `crossed`'s.
    Both are corrected by Holm's method for the number of claims.

    Args:
      seeds: of each seed the transcripts of the systems that were decoded.
    Raises:
      ValueError: two systems were decoded on different utterances.
    """
    judged, spreads = [], {}
    for claim in cfg.claims:
        for set_name in claim.sets or cfg.corpus.test_parts:
            found, spread = _measure(cfg, claim, set_name, seeds, speakers.get(set_name, {}))
            judged.append(found)
            spreads[id(found)] = spread
    measured = sorted((claim for claim in judged if claim.p is not None), key=lambda claim: claim.p)
    corrected = 0.0
    for rank, claim in enumerate(measured):
        left = len(measured) - rank
        distance, spread = claim.delta_wer - claim.margin, spreads[id(claim)]
        corrected = claim.p_holm = max(corrected, min(1.0, left * claim.p))
        if claim.p_holm < LEVEL:
            claim.verdict = "shown" if distance < 0 else "refuted"
        elif distance:
            normal = NormalDist()
            needed = normal.inv_cdf(1 - LEVEL / (2 * left)) + normal.inv_cdf(POWER)
            claim.times, claim.seeds_needed = spread.what_decides(abs(distance) / needed)
    return judged


@dataclass
class Spread:
    """What the standard error of a distance is made of, in points of WER: variances of its mean over so many seeds.

    Attributes:
      by_speaker: how speakers differ, whatever the seed.
      by_seed: how seeds differ, whatever the speaker.
      rest: how they differ otherwise; of one seed it is in `by_speaker`.
    """

    seeds: int = 1
    by_speaker: float = 0.0
    by_seed: float = 0.0
    rest: float = 0.0

    def what_decides(self, error: float) -> tuple[float | None, int | None]:
        """How many times the speakers, or how many seeds instead, bring the standard error down to `error`; None for
        what cannot. Seeds come first, since anybody can have more of them."""
        if self.seeds > 1:
            left = error**2 - self.by_speaker
            seeds = math.ceil(self.seeds * (self.by_seed + self.rest) / left) if left > 0 else math.inf
            if seeds <= MOST_SEEDS:
                return None, max(self.seeds + 1, seeds)
        left = error**2 - self.by_seed
        return (
            ((self.by_speaker + self.rest) / left, None) if left > 0 and self.by_speaker + self.rest else (None, None)
        )


def _measure(
    cfg: Config, claim: ClaimConfig, set_name: str, seeds: Sequence[Systems], speakers: Mapping[str, str]
) -> tuple[Claim, Spread]:
    """A claim on one set, undecided as yet, and the spread of its distance."""
    pass_name = Pass(claim.pass_)
    found = Claim(
        system=claim.system, against=claim.against, kind=claim.kind, margin_relative=claim.margin_relative,
        margin_points=claim.margin_points, set=set_name, pass_name=pass_name, verdict="not measured",
    )  # fmt: skip
    seeds = [systems for systems in seeds if claim.system in systems and claim.against in systems]
    if not seeds:
        return found, Spread()
    both = [[systems[name][set_name] for name in (claim.against, claim.system)] for systems in seeds]
    if any(passes[pass_name] is None for pair in both for passes in pair):
        pass_name = found.pass_name = Pass.FIRST_PASS
    sums = []
    first = None
    for pair in both:
        a, b = paired(*(passes[pass_name] for passes in pair))
        first = first or a
        paired(first, a)  # all seeds on the same utterances
        counts = [error_counts(rows) for rows in (a, b)]
        columns = np.stack([*(rows[:, :3].sum(axis=1) for rows in counts), counts[0][:, 3]])
        numbers, found.by_speaker = clusters(a, speakers)
        sums.append(cluster_sums(columns, numbers))
    errors_a, errors_b, words = np.stack(sums, axis=-1)  # (clusters, seeds)
    relative, points = claim.margin_relative or 0.0, claim.margin_points or 0.0

    found.verdict, found.clusters, found.seeds = "undecided", len(words), len(seeds)
    found.by_seed = (100.0 * (errors_b - errors_a).sum(axis=0) / words.sum(axis=0)).tolist()
    found.delta_wer = float(100.0 * (errors_b - errors_a).sum() / words.sum())
    found.margin = float(relative * 100.0 * errors_a.sum() / words.sum() + points)
    names = {speakers.get(cut_id) for cut_id, _, _ in a}
    enough = min(len(words), len(names) if None not in names else len(words)) >= MIN_SPEAKERS
    shares = errors_b - (1 + relative) * errors_a - points / 100 * words  # of the distance; their sum is all of it
    if len(seeds) == 1:
        drawn = resample(sums[0], cfg.decode.bootstrap_samples, cfg.seed)
        found.ci95 = interval(100.0 * (drawn[1] - drawn[0]) / drawn[2], found.delta_wer, len(words))
        if not enough:
            return found, Spread()
        found.p = wild_cluster_p(shares[:, 0], cfg.decode.bootstrap_samples, cfg.seed)
        return found, Spread(1, (100.0 / words.sum()) ** 2 * len(words) * float(shares.var(ddof=1)))
    if len(words) < 2:
        found.ci95 = (found.delta_wer, found.delta_wer)
        return found, Spread()
    scale = 100.0 * len(words) / words[:, 0].sum()
    low, high = crossed(errors_b - errors_a).interval()
    found.ci95 = (scale * low, scale * high)
    if not enough or len(seeds) < MIN_SEEDS:
        return found, Spread()
    effects = crossed(shares)
    found.p = effects.p()
    by_speaker, by_seed, rest = (scale**2 * variance for variance in effects.variances())
    return found, Spread(len(seeds), by_speaker, by_seed, rest)


def wild_cluster_p(shares: np.ndarray, num_samples: int, seed: int) -> float:
    """Two-sided p of a sum being zero: the share of draws with random signs whose sum is as far from it or further.

    A wild cluster bootstrap with Rademacher weights (Cameron, Gelbach and Miller 2008); exact where the shares are
    symmetric around zero. With n clusters it is never far below 2^(1-n).

    Args:
      shares: (n,) float, what each cluster adds to the sum.
    """
    rng, least, as_far = np.random.default_rng(seed), abs(shares.sum()) * (1 - 1e-9), 0
    step = max(1, _CHUNK // len(shares))
    for begin in range(0, num_samples, step):
        signs = rng.integers(0, 2, size=(min(step, num_samples - begin), len(shares)), dtype=np.int8) * 2 - 1
        as_far += int((np.abs(signs @ shares) >= least).sum())
    return (as_far + 1) / (num_samples + 1)  # + 1: no finite number of draws shows p = 0
