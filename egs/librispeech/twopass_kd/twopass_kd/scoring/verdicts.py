"""What the paired bootstraps of a results.json say, in words that are computed from them."""

from twopass_kd.files.decode_json import Pass
from twopass_kd.files.ondevice_json import Difference
from twopass_kd.files.results_json import ResultsJson

SIGNIFICANCE_LEVEL = 0.05


def judge(result: Difference) -> str:
    """What a paired bootstrap of one system minus its baseline says at the 5% level."""
    direction = "different" if result.delta_wer == 0 else "worse" if result.delta_wer > 0 else "better"
    return f"{'' if result.p < SIGNIFICANCE_LEVEL else 'not '}significantly {direction}"


def format_p(result: Difference) -> str:
    """`p=0.184` or `p<0.001`."""
    return "p<0.001" if result.p < 0.001 else f"p={result.p:.3f}"


def describe(what: str, result: Difference) -> str:
    """One sentence: `what`, the difference in absolute percent, its interval, p, and what follows."""
    low, high = result.ci95
    return f"{what}: {result.delta_wer:+.2f} (95% CI {low:+.2f} to {high:+.2f}, {format_p(result)}): {judge(result)}"


def verdict(baseline: str, name: Pass, result: Difference) -> str:
    """One sentence on a paired bootstrap of student minus `baseline`."""
    return describe(f"student vs {baseline}, {name.replace('_', '-')}", result)


def comparisons(results: ResultsJson) -> list[tuple[str, str, Pass, Difference]]:
    """(test set, baseline, pass, paired bootstrap) of every comparison with the student, the teacher's first."""
    found = [(set_name, "teacher", results.significance_pass, r) for set_name, r in results.significance.items()]
    for set_name, by_pass in results.significance_baseline.items():
        found += [(set_name, "student_copy", name, r) for name, r in by_pass.items()]
    return found


def verdicts(results: ResultsJson) -> list[tuple[str, str]]:
    """(test set, sentence) of every comparison, the teacher's first."""
    return [(set_name, verdict(baseline, name, r)) for set_name, baseline, name, r in comparisons(results)]
