"""Verdicts on the claims of a config: is a student as good as its teacher, within the margin that was declared?"""

import bisect
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from twopass_kd.config.schema import ClaimConfig, Config
from twopass_kd.files.decode_json import Pass
from twopass_kd.files.results_json import Claim
from twopass_kd.scoring.crossed import Crossed, crossed
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
MOST_TIMES = 1000  # as many speakers
_CHUNK = 2**22  # signs held in memory at a time

Passes = Mapping[Pass, Sequence[Transcript] | None]  # transcripts of one system and set; None: it has no such pass
Systems = Mapping[str, Mapping[str, Passes]]  # system -> set -> passes
Speakers = Mapping[str, Mapping[str, str]]  # set -> cut id -> speaker


def judge_claims(cfg: Config, seeds: Sequence[Systems], speakers: Speakers) -> list[Claim]:
    """Every claim on every set that it is about.

    A claim is of a distance from zero: of the difference of two WERs, less the margin. With one seed its p-value is
    that of a wild cluster bootstrap over speakers, which stays honest with few of them; with several it is `crossed`'s.
    Of a config with several seeds fewer than three show nothing. Both are corrected by Holm's method for the number of
    claims.

    Args:
      seeds: of each seed the transcripts of the systems that were decoded.
    Raises:
      ValueError: two systems were decoded on different utterances.
    """
    judged, effects = [], {}
    for claim in cfg.claims:
        for set_name in claim.sets or cfg.corpus.test_parts:
            found, of_distance = _measure(cfg, claim, set_name, seeds, speakers.get(set_name, {}))
            judged.append(found)
            effects[id(found)] = of_distance
    measured = sorted((claim for claim in judged if claim.p is not None), key=lambda claim: claim.p)
    corrected = 0.0
    for rank, claim in enumerate(measured):
        left = len(measured) - rank
        distance = claim.delta_wer - claim.margin
        corrected = claim.p_holm = max(corrected, min(1.0, left * claim.p))
        if claim.p_holm < LEVEL:
            claim.verdict = "shown" if distance < 0 else "refuted"
        else:
            claim.times, claim.seeds_needed = what_decides(effects[id(claim)], LEVEL / left)
    return judged


def what_decides(effects: Crossed, level: float) -> tuple[float | None, int | None]:
    """How many times the speakers, or how many seeds instead, give a test at `level` a power of `POWER`, if mean and
    variances stay; None for what cannot. Seeds come first, since anybody can have more of them."""
    speakers, seeds = effects.shape

    def is_enough(speakers: int, seeds: int) -> bool:
        if seeds == 1 and 2.0 ** (1 - speakers) >= level:  # see wild_cluster_p
            return False
        return effects.expected(speakers, seeds).power(level) >= POWER

    if seeds > 1:
        needed = _smallest(range(seeds + 1, MOST_SEEDS + 1), lambda number: is_enough(speakers, number))
        if needed is not None:
            return None, needed
    needed = _smallest(range(speakers + 1, MOST_TIMES * speakers + 1), lambda number: is_enough(number, seeds))
    return None if needed is None else needed / speakers, None


def _smallest(numbers: range, is_enough: Callable[[int], bool]) -> int | None:
    """The first of `numbers` that is enough; None where the last is not."""
    found = bisect.bisect_left(numbers, True, key=is_enough)
    return numbers[found] if found < len(numbers) else None


def _measure(
    cfg: Config, claim: ClaimConfig, set_name: str, seeds: Sequence[Systems], speakers: Mapping[str, str]
) -> tuple[Claim, Crossed | None]:
    """A claim on one set, undecided as yet, and what its distance is made of."""
    pass_name = Pass(claim.pass_)
    found = Claim(
        system=claim.system, against=claim.against, kind=claim.kind, margin_relative=claim.margin_relative,
        margin_points=claim.margin_points, set=set_name, pass_name=pass_name, verdict="not measured",
    )  # fmt: skip
    seeds = [systems for systems in seeds if claim.system in systems and claim.against in systems]
    if not seeds:
        return found, None
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
    of_several = len(seeds) > 1 or bool(cfg.seeds)
    if not enough:
        found.too_few = "speakers"
    elif of_several and len(seeds) < MIN_SEEDS:
        found.too_few = "seeds"
    if len(seeds) == 1:
        drawn = resample(sums[0], cfg.decode.bootstrap_samples, cfg.seed)
        found.ci95 = interval(100.0 * (drawn[1] - drawn[0]) / drawn[2], found.delta_wer, len(words))
        if found.too_few:
            return found, None
        found.p = wild_cluster_p(shares[:, 0], cfg.decode.bootstrap_samples, cfg.seed)
        return found, Crossed(float(shares.mean()), float(shares.var(ddof=1)), 0.0, 0.0, shares.shape)
    if len(words) < 2:
        found.ci95 = (found.delta_wer, found.delta_wer)
        return found, None
    scale = 100.0 * len(words) / words[:, 0].sum()
    low, high = crossed(errors_b - errors_a).interval()
    found.ci95 = (scale * low, scale * high)
    effects = crossed(shares)
    if not found.too_few:
        found.p = effects.p()
    return found, effects


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
