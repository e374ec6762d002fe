"""What the tables say of `decode.searches`, beside the two searches that every system has."""

from twopass_kd.files.decode_json import Pass
from twopass_kd.files.results_json import ResultsJson

SEARCHES_UNIT = "WER in % of the first pass and after rescoring; real-time factor of the first pass, first test set"


def search_rows(results: ResultsJson) -> list[tuple[str, ...]]:
    """A heading, then a row for each system and search; empty where no system has further searches."""
    sets = results.corpus.test_parts
    rows = []
    for system in results.systems:
        if not system.searches:
            continue
        rtf = system.rtf.get(sets[0], {})
        greedy = [one for s in sets for one in (system.wer[s].greedy_search.wer, None)]
        beam = [scored and scored.wer for s in sets for scored in (system.wer[s].first_pass, system.wer[s].two_pass)]
        rows.append(_row(system.name, "greedy_search", greedy, rtf.get(Pass.GREEDY_SEARCH)))
        rows.append(_row(system.name, "modified_beam_search", beam, rtf.get(Pass.FIRST_PASS)))
        for name, found in system.searches.items():
            wers = [wer for s in sets for wer in (found.wer[s].first_pass, found.wer[s].two_pass)]
            title = name if found.lm_scale is None else f"{name} (scale {found.lm_scale:g})"
            rows.append(_row(system.name, title, wers, found.rtf[sets[0]][Pass.FIRST_PASS]))
    heads = [f"{s} {title}" for s in sets for title in ("first", "two-pass")]
    return [("system", "search", *heads, "RTF"), *rows] if rows else []


def _row(system: str, search: str, wers: list[float | None], rtf: float | None) -> tuple[str, ...]:
    cells = ("-" if wer is None else f"{wer:.2f}" for wer in wers)
    return (system, search, *cells, "-" if rtf is None else f"{rtf:.4f}")


def searches_left_out(results: ResultsJson) -> list[str]:
    """A sentence for each reason why searches of the config were not run."""
    reasons = dict.fromkeys(s.searches_left_out for s in results.systems if s.searches_left_out)
    return [f"further searches were left out: {reason}" for reason in reasons]
