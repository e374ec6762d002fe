"""What a paired bootstrap says, in words that are computed from it."""

from typing import Any

SIGNIFICANCE_LEVEL = 0.05


def judge(result: dict[str, Any]) -> str:
    """What a paired bootstrap of one system minus its baseline says at the 5% level."""
    delta = result["delta_wer"]
    direction = "different" if delta == 0 else "worse" if delta > 0 else "better"
    return f"{'' if result['p'] < SIGNIFICANCE_LEVEL else 'not '}significantly {direction}"


def format_p(result: dict[str, Any]) -> str:
    """`p=0.184` or `p<0.001`."""
    return "p<0.001" if result["p"] < 0.001 else f"p={result['p']:.3f}"


def describe(what: str, result: dict[str, Any]) -> str:
    """One sentence: `what`, the difference in absolute percent, its interval, p, and what follows."""
    low, high = result["ci95"]
    return f"{what}: {result['delta_wer']:+.2f} (95% CI {low:+.2f} to {high:+.2f}, {format_p(result)}): {judge(result)}"
