"""What the tables say of `decode.searches`, beside the two searches that every system has."""

from typing import Any

SEARCHES_UNIT = "WER in % of the first pass and after rescoring; real-time factor of the first pass, first test set"


def search_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """A heading, then a row for each system and search; empty where no system has further searches."""
    sets = results["corpus"]["test_parts"]
    rows = []
    for system in results["systems"]:
        searches = system.get("searches")  # a results.json from before there were any has no such key
        if not searches:
            continue
        own = {
            "greedy_search": [(system["wer"][s]["greedy_search"], None) for s in sets],
            "modified_beam_search": [(system["wer"][s]["first_pass"], system["wer"][s]["two_pass"]) for s in sets],
        }
        for (name, scored), key in zip(own.items(), ("greedy_search", "first_pass")):
            wers = [one and one["wer"] for both in scored for one in both]
            rows.append(_row(system["name"], name, wers, system["rtf"].get(sets[0], {}).get(key)))
        for name, found in searches.items():
            wers = [found["wer"][s][key] for s in sets for key in ("first_pass", "two_pass")]
            title = name if found["lm_scale"] is None else f"{name} (scale {found['lm_scale']:g})"
            rows.append(_row(system["name"], title, wers, found["rtf"][sets[0]]["first_pass"]))
    heads = [f"{s} {title}" for s in sets for title in ("first", "two-pass")]
    return [("system", "search", *heads, "RTF"), *rows] if rows else []


def _row(system: str, search: str, wers: list[float | None], rtf: float | None) -> tuple[str, ...]:
    cells = ("-" if wer is None else f"{wer:.2f}" for wer in wers)
    return (system, search, *cells, "-" if rtf is None else f"{rtf:.4f}")


def searches_left_out(results: dict[str, Any]) -> list[str]:
    """A sentence for each reason why searches of the config were not run."""
    reasons = dict.fromkeys(s["searches_left_out"] for s in results["systems"] if s.get("searches_left_out"))
    return [f"further searches were left out: {reason}" for reason in reasons]
