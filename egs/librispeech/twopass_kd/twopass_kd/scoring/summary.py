"""A results.json as plain text, for the end of stages 9 and 10."""

from collections.abc import Sequence

from twopass_kd.files.decode_json import Pass
from twopass_kd.files.ondevice_json import OnDeviceJson
from twopass_kd.files.results_json import ResultsJson, System, Wer
from twopass_kd.files.seeds_json import OverSeeds, SeedsJson, SeedsSystem
from twopass_kd.scoring.further_searches import SEARCHES_UNIT, search_rows, searches_left_out
from twopass_kd.scoring.on_device import sentences, summary_rows
from twopass_kd.scoring.verdicts import verdict


def dev_set_mark(results: ResultsJson | SeedsJson, set_name: str) -> str:
    """What is said after the name of a test set that is a dev set as well; empty for the others."""
    both = set_name in results.corpus.test_parts and set_name in results.corpus.dev_parts
    return " (dev set: the rescoring weight was chosen on it)" if both else ""


def fewer(results: ResultsJson | SeedsJson, system: System | SeedsSystem) -> str:
    """`60.1%`: the share of the teacher's deployed parameters that a system does without; `-` for the teacher."""
    teacher = results.system("teacher")
    if teacher is None or teacher.name == system.name:
        return "-"
    return f"{100 * (1 - system.params.total / teacher.params.total):.1f}%"


def format_wer(scored: Wer | None) -> str:
    """`7.20 [6.11, 8.36]`, or `-` for a pass that the system does not have."""
    return "-" if scored is None else f"{scored.wer:.2f} [{scored.ci95[0]:.2f}, {scored.ci95[1]:.2f}]"


def summary_text(results: ResultsJson) -> str:
    """The tables and the verdicts."""
    corpus = results.corpus
    lines = [f"{results.conf}: WER in % [95% bootstrap interval]{' on synthetic speech' if corpus.synthetic else ''}"]
    for set_name in corpus.test_parts:
        words = results.systems[0].wer[set_name].ref_words
        rows = [("system", "params", "fewer", *(name.title for name in Pass), "RTF")]
        rows += [_summary_row(results, system, set_name) for system in results.systems]
        lines += ["", f"{set_name} ({words} words){dev_set_mark(results, set_name)}", *_columns(rows)]
        lines += [verdict(claim) for claim in results.claims if claim.set == set_name]
    rows = search_rows(results)
    if rows:
        lines += ["", f"further searches: {SEARCHES_UNIT}", *_columns(rows)]
    lines += searches_left_out(results)
    if results.not_decoded:
        lines += ["", f"not decoded, so not scored: {', '.join(results.not_decoded)}"]
    if results.on_device:
        lines += ["", *_on_device_lines(results.on_device, corpus.test_parts[0])]
    return "\n".join(lines)


def seeds_text(results: SeedsJson) -> str:
    """The tables and the verdicts over seeds."""
    names = ", ".join(map(str, results.seeds))
    speech = " on synthetic speech" if results.corpus.synthetic else ""
    lines = [f"{results.conf}: WER in %{speech}, mean (lowest - highest) of seeds {names}"]
    for part in results.corpus.test_parts:
        rows = [("system", "params", "fewer", *(name.title for name in Pass), "last pass of each")]
        for system in results.systems:
            params, last = system.params.total, system.wer[part][Pass.TWO_PASS] or system.wer[part][Pass.FIRST_PASS]
            wers = (format_over_seeds(system.wer[part][name]) for name in Pass)
            each = " ".join(f"{wer:.2f}" for wer in last.each)
            rows.append((system.name, f"{params / 1e6:.3f} M", fewer(results, system), *wers, each))
        lines += ["", f"{part} ({results.words[part]} words){dev_set_mark(results, part)}", *_columns(rows)]
        lines += [verdict(claim) for claim in results.claims if claim.set == part]
    for what, left_out in (("seeds that are not finished", results.unfinished), ("not in all", results.not_in_all)):
        lines += ["", f"{what}: {', '.join(map(str, left_out))}"] if left_out else []
    return "\n".join(lines)


def format_over_seeds(found: OverSeeds | None) -> str:
    """`7.20 (6.90-7.61)`, or `-` for a pass that the system does not have."""
    return "-" if found is None else f"{found.mean:.2f} ({found.low:.2f}-{found.high:.2f})"


def _on_device_lines(on_device: OnDeviceJson, set_name: str) -> list[str]:
    decoded = f"{on_device.decoded_seconds[set_name] / 60:.0f} min of {set_name}"
    title = f"on the device: threads {on_device.threads}, batch 1, WER on {decoded}, times p50/p95"
    return [title, *_columns(summary_rows(on_device, set_name)), *sentences(on_device)]


def _summary_row(results: ResultsJson, system: System, set_name: str) -> tuple[str, ...]:
    rtf, params = system.rtf.get(set_name, {}), system.params.total
    last = rtf.get(Pass.TWO_PASS) or rtf.get(Pass.FIRST_PASS)
    wers = (format_wer(system.wer[set_name][name]) for name in Pass)
    return (system.name, f"{params / 1e6:.3f} M", fewer(results, system), *wers, "-" if last is None else f"{last:.4f}")


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return lines
