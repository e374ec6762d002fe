"""What bootstraps of a results.json say, in words that are computed from them."""

from twopass_kd.files.ondevice_json import Difference
from twopass_kd.files.results_json import Claim


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
    figures = f"{claim.delta_wer:+.2f}, 95% CI {low:+.2f} to {high:+.2f}{margin}, {format_p(claim.p_holm)}"
    return f"{claimed(claim)}: {claim.verdict} ({figures}){_what_would_decide(claim)}"


def _what_would_decide(claim: Claim) -> str:
    if claim.verdict != "undecided":
        return ""
    if claim.times is None or claim.times > 1000:
        return "; at this difference no sample would decide it"
    clusters = "speakers" if claim.by_speaker else "utterances"
    return f"; {max(claim.times, 1.1):.2g} times as many {clusters} would decide it, if the difference stays"
