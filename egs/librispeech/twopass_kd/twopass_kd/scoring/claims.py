"""Verdicts on the claims of a config: is a student as good as its teacher, within the margin that was declared?"""

from collections.abc import Mapping, Sequence

import numpy as np

from twopass_kd.config.schema import ClaimConfig, Config
from twopass_kd.files.decode_json import Pass
from twopass_kd.files.results_json import Claim
from twopass_kd.scoring.wer import (
    Transcript,
    cluster_sums,
    clusters,
    error_counts,
    interval,
    paired,
    resample,
    two_sided_p,
)

LEVEL = 0.05
_POWER = 1.96 + 0.84  # standard errors from zero at which a test of 5% decides in 80% of the cases

Passes = Mapping[Pass, Sequence[Transcript] | None]  # transcripts of one system and set; None: it has no such pass
Speakers = Mapping[str, Mapping[str, str]]  # set -> cut id -> speaker


def judge_claims(cfg: Config, transcripts: Mapping[str, Mapping[str, Passes]], speakers: Speakers) -> list[Claim]:
    """Every claim on every set that it is about.

    A claim is of a distance from zero: of the difference of two WERs, less the margin. Speakers are resampled, the same
    ones for both systems, and the p-values corrected by Holm's method for the number of claims.

    Args:
      transcripts: system -> set -> pass -> transcripts, of the systems that were decoded.
    Raises:
      ValueError: two systems were decoded on different utterances.
    """
    judged = [
        _measure(cfg, claim, set_name, transcripts, speakers.get(set_name, {}))
        for claim in cfg.claims
        for set_name in claim.sets or cfg.corpus.test_parts
    ]
    measured = sorted((claim for claim in judged if claim.p is not None), key=lambda claim: claim.p)
    corrected = 0.0
    for rank, claim in enumerate(measured):
        corrected = claim.p_holm = max(corrected, min(1.0, (len(measured) - rank) * claim.p))
        if claim.p_holm < LEVEL:
            claim.verdict = "shown" if claim.delta_wer < claim.margin else "refuted"
            claim.times = None
    return judged


def _measure(
    cfg: Config,
    claim: ClaimConfig,
    set_name: str,
    transcripts: Mapping[str, Mapping[str, Passes]],
    speakers: Mapping[str, str],
) -> Claim:
    """A claim on one set, undecided as yet."""
    pass_name = Pass(claim.pass_)
    found = Claim(
        system=claim.system, against=claim.against, kind=claim.kind, margin_relative=claim.margin_relative,
        margin_points=claim.margin_points, set=set_name, pass_name=pass_name, verdict="not measured",
    )  # fmt: skip
    if claim.system not in transcripts or claim.against not in transcripts:
        return found
    both = [transcripts[name][set_name] for name in (claim.against, claim.system)]
    if any(passes[pass_name] is None for passes in both):
        pass_name = found.pass_name = Pass.FIRST_PASS
    a, b = paired(*(passes[pass_name] for passes in both))
    counts = [error_counts(rows) for rows in (a, b)]
    columns = np.stack([*(rows[:, :3].sum(axis=1) for rows in counts), counts[0][:, 3]])
    numbers, by_speaker = clusters(a, speakers)
    sums = cluster_sums(columns, numbers)
    wer_a, wer_b = 100.0 * columns[:2].sum(axis=1) / columns[2].sum()
    drawn = resample(sums, cfg.decode.bootstrap_samples, cfg.seed)
    wers_a, wers_b = 100.0 * drawn[:2] / drawn[2]

    def margin(wer: np.ndarray | float) -> np.ndarray | float:
        return (claim.margin_relative or 0.0) * wer + (claim.margin_points or 0.0)

    distances = wers_b - wers_a - margin(wers_a)
    distance, error = wer_b - wer_a - margin(wer_a), float(distances.std())
    found.verdict = "undecided"
    found.delta_wer, found.ci95 = float(wer_b - wer_a), interval(wers_b - wers_a)
    found.margin, found.p = float(margin(wer_a)), two_sided_p(distances)
    found.clusters, found.by_speaker = sums.shape[1], by_speaker
    found.times = (_POWER * error / abs(distance)) ** 2 if distance and error else None
    return found
