"""What the tests of claims and the bootstraps say, in words that are computed from them."""

from twopass_kd.files.ondevice_json import Difference
from twopass_kd.files.results_json import Claim

CLAIMS_NOTE = (
    "Points of WER, negative where the first system is better; claims as the config declares them. Shown and refuted: p"
    " below 0.05, two-sided, of the difference from the margin, by a wild cluster bootstrap over speakers (utterances,"
    " where speakers are not known) and corrected for the number of claims (Holm). Intervals are of the difference, and"
    " not corrected."
)
CLAIMS_OVER_SEEDS_NOTE = (
    "Points of WER, negative where the first system is better; claims as the config declares them. Shown and refuted: p"
    " below 0.05, two-sided, of the mean difference from the margin, by an analysis of variance with seeds and speakers"
    " (utterances, where speakers are not known) as crossed random effects (quasi-F), corrected for the count of claims"
    " (Holm). Intervals are of the mean difference by the same analysis, and not corrected."
)


def format_p(p: float) -> str:
    """`p=0.184` or `p<0.001`."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def describe(what: str, result: Difference) -> str:
    """`what`, the difference in points, its interval and p."""
    low, high = result.ci95
    return f"{what}: {result.delta_wer:+.2f} (95% CI {low:+.2f} to {high:+.2f}, {format_p(result.p)})"


def claimed(claim: Claim) -> str:
    """What is claimed: `student's two-pass WER is less than 10% above teacher's`."""
    what = "below"
    if claim.margin_relative is not None:
        what = f"less than {100 * claim.margin_relative:g}% above"
    elif claim.margin_points is not None:
        what = f"less than {claim.margin_points:g} points above"
    return f"{claim.system}'s {claim.pass_name.title} WER is {what} {claim.against}'s"


def verdict(claim: Claim) -> str:
    """One sentence: the claim, the verdict and the figures; what would decide it where it is undecided."""
    if claim.delta_wer is None:
        return f"{claimed(claim)}: not measured, since one of them was not decoded"
    low, high = claim.ci95
    margin = f", margin {claim.margin:+.2f}" if claim.kind == "non_inferior" else ""
    sample = f"{claim.clusters:,} {'speakers' if claim.by_speaker else 'utterances'}"
    sample += f", {claim.seeds} seeds" if claim.seeds > 1 else ""
    p = "" if claim.p_holm is None else f", {format_p(claim.p_holm)}"
    figures = f"{claim.delta_wer:+.2f}, 95% CI {low:+.2f} to {high:+.2f}{margin}{p}, {sample}"
    return f"{claimed(claim)}: {claim.verdict} ({figures}){_what_would_decide(claim)}"


def _what_would_decide(claim: Claim) -> str:
    if claim.verdict != "undecided":
        return ""
    if claim.too_few:
        return f"; fewer than {'five speakers' if claim.too_few == 'speakers' else 'three seeds'} show nothing"
    if claim.seeds_needed is not None:
        return f"; {claim.seeds_needed} seeds would decide it in four of five cases, if the difference stays"
    if claim.seeds > 1 and claim.times is None:
        return "; neither more seeds nor more speakers alone would decide it, if the difference stays"
    if claim.times is None:
        return "; at this difference more than 1000 times as many would be needed"
    times = max(claim.times, 1.1)
    many = f"{times:.1f}" if times < 10 else f"{times:.0f}"
    what = f" {'speakers' if claim.by_speaker else 'utterances'}" if claim.seeds > 1 else ""
    return f"; {many} times as many{what} would decide it in four of five cases, if the difference stays"
