"""Verdicts on the claims of a config: is a student as good as its teacher, within the margin that was declared?"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from twopass_kd.config.schema import ClaimConfig, Config
from twopass_kd.files.decode_json import Pass
from twopass_kd.files.results_json import Claim
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
_CHUNK = 2**22  # signs held in memory at a time

Passes = Mapping[Pass, Sequence[Transcript] | None]  # transcripts of one system and set; None: it has no such pass
Speakers = Mapping[str, Mapping[str, str]]  # set -> cut id -> speaker


def judge_claims(cfg: Config, transcripts: Mapping[str, Mapping[str, Passes]], speakers: Speakers) -> list[Claim]:
    """Every claim on every set that it is about.

    A claim is of a distance from zero: of the difference of two WERs, less the margin. Its p-value is that of a wild
    cluster bootstrap over speakers, which stays honest with few of them, corrected by Holm's method for the number of
    claims.

    Args:
      transcripts: system -> set -> pass -> transcripts, of the systems that were decoded.
    Raises:
      ValueError: two systems were decoded on different utterances.
    """
    judged, errors = [], {}
    for claim in cfg.claims:
        for set_name in claim.sets or cfg.corpus.test_parts:
            found, error = _measure(cfg, claim, set_name, transcripts, speakers.get(set_name, {}))
            judged.append(found)
            errors[id(found)] = error
    measured = sorted((claim for claim in judged if claim.p is not None), key=lambda claim: claim.p)
    corrected = 0.0
    for rank, claim in enumerate(measured):
        left = len(measured) - rank
        distance, error = claim.delta_wer - claim.margin, errors[id(claim)]
        corrected = claim.p_holm = max(corrected, min(1.0, left * claim.p))
        if claim.p_holm < LEVEL:
            claim.verdict = "shown" if distance < 0 else "refuted"
        elif distance and error:
            normal = NormalDist()
            needed = normal.inv_cdf(1 - LEVEL / (2 * left)) + normal.inv_cdf(POWER)
            claim.times = (needed * error / abs(distance)) ** 2
    return judged


def _measure(
    cfg: Config,
    claim: ClaimConfig,
    set_name: str,
    transcripts: Mapping[str, Mapping[str, Passes]],
    speakers: Mapping[str, str],
) -> tuple[Claim, float]:
    """A claim on one set, undecided as yet, and the standard error of its distance."""
    pass_name = Pass(claim.pass_)
    found = Claim(
        system=claim.system, against=claim.against, kind=claim.kind, margin_relative=claim.margin_relative,
        margin_points=claim.margin_points, set=set_name, pass_name=pass_name, verdict="not measured",
    )  # fmt: skip
    if claim.system not in transcripts or claim.against not in transcripts:
        return found, 0.0
    both = [transcripts[name][set_name] for name in (claim.against, claim.system)]
    if any(passes[pass_name] is None for passes in both):
        pass_name = found.pass_name = Pass.FIRST_PASS
    a, b = paired(*(passes[pass_name] for passes in both))
    counts = [error_counts(rows) for rows in (a, b)]
    columns = np.stack([*(rows[:, :3].sum(axis=1) for rows in counts), counts[0][:, 3]])
    numbers, found.by_speaker = clusters(a, speakers)
    errors_a, errors_b, words = sums = cluster_sums(columns, numbers)
    relative, points = claim.margin_relative or 0.0, claim.margin_points or 0.0

    drawn = resample(sums, cfg.decode.bootstrap_samples, cfg.seed)
    delta = 100.0 * (errors_b.sum() - errors_a.sum()) / words.sum()
    found.verdict, found.clusters = "undecided", len(words)
    found.delta_wer = float(delta)
    found.ci95 = interval(100.0 * (drawn[1] - drawn[0]) / drawn[2], delta, len(words))
    found.margin = float(relative * 100.0 * errors_a.sum() / words.sum() + points)
    names = {speakers.get(cut_id) for cut_id, _, _ in a}
    if min(len(words), len(names) if None not in names else len(words)) < MIN_SPEAKERS:
        return found, 0.0
    shares = errors_b - (1 + relative) * errors_a - points / 100 * words  # of the distance; their sum is all of it
    found.p = wild_cluster_p(shares, cfg.decode.bootstrap_samples, cfg.seed)
    return found, float(100.0 * np.sqrt(len(words)) * shares.std(ddof=1) / words.sum())


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
