"""What the pages say, as plain values: computed once here, so that HTML and Markdown cannot differ.

A cell of a table that has nothing to say is "-".
"""

from typing import Any

from twopass_kd.files.decode_json import PARTS, Pass
from twopass_kd.files.ondevice_json import Difference, OnDeviceJson
from twopass_kd.files.results_json import Claim, ResultsJson, System
from twopass_kd.report.collect import Report, Utterance
from twopass_kd.scoring import on_device as device
from twopass_kd.scoring.further_searches import SEARCHES_UNIT, search_rows, searches_left_out
from twopass_kd.scoring.listening import (
    CONDITIONS_UNIT,
    DELAY_HEADS,
    DELAYS_UNIT,
    LATENCY_HEADS,
    LATENCY_UNIT,
    condition_tables,
    delay_rows,
    latency_rows,
)
from twopass_kd.scoring.summary import dev_set_mark, fewer
from twopass_kd.scoring.verdicts import CLAIMS_NOTE, claimed, format_p, verdict


def page_content(report: Report) -> dict[str, Any]:
    """The values of the templates by name."""
    results = report.results
    corpus = results.corpus
    stages = stage_rows(results)
    search_heads, *searches = search_rows(results) or [()]
    return {
        "report": report,
        "results": results,
        "corpus_line": corpus_line(results),
        "facts": _facts(results),
        "pass_titles": {name.value: name.title for name in Pass},
        "set_titles": {s: s + dev_set_mark(results, s) for s in (*corpus.test_parts, *corpus.dev_parts)},
        "only_dev_parts": [s for s in corpus.dev_parts if s not in corpus.test_parts],
        "claims_note": CLAIMS_NOTE,
        "claims": [
            {"claim": claim, "title": claimed(claim), "sentence": verdict(claim), "cells": claim_cells(claim)}
            for claim in results.claims
        ],
        "size_rows": [_size_row(results, system) for system in results.systems],
        "rtf_note": rtf_note(results),
        "on_device": results.on_device and _on_device(results.on_device, corpus.test_parts),
        "condition_tables": condition_tables(results),
        "conditions_unit": CONDITIONS_UNIT,
        "delay_heads": DELAY_HEADS,
        "delays": delay_rows(results),
        "delays_unit": DELAYS_UNIT,
        "latency_heads": LATENCY_HEADS,
        "latencies": latency_rows(results),
        "latency_unit": LATENCY_UNIT,
        "search_heads": search_heads,
        "searches": searches,
        "searches_unit": SEARCHES_UNIT,
        "searches_left_out": searches_left_out(results),
        "weights": [_weight_row(system) for system in results.systems if system.rescore_weight is not None],
        "scanned": [s for s in results.systems if s.rescore_weight is not None and scan_at_chosen_reward(s)],
        "phases": [(phase, format_duration(phase.seconds)) for phase in report.phases],
        "loss_rows": _loss_rows(report),
        "stages": stages,
        "stage_times": [(name, format_duration(seconds)) for name, seconds in stages],
        "total_time": format_duration(sum(seconds for _, seconds in stages)),
        "worst_of": f"{report.worst.system}, {report.worst.pass_name.title}, {report.worst.set_name}",
        "environment": environment_rows(results),
    }


def format_duration(seconds: float) -> str:
    """`42 s`, `6.8 min`, `3.1 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def stage_rows(results: ResultsJson) -> list[tuple[str, float]]:
    """(`3 teacher RNN-T`, seconds) of every finished stage; `stage 3` where its marker has no title."""
    rows = []
    for done in results.stages:
        stage, title = done.stage, done.title
        rows.append((title if title == f"stage {stage}" else f"{stage} {title}", float(done.seconds)))
    return rows


def corpus_line(results: ResultsJson) -> str:
    """What was tested, said where WERs are shown."""
    corpus = results.corpus
    kind = "synthetic speech" if corpus.synthetic else "speech"
    system = results.systems[0]
    sets = (f"{s} ({system.wer[s].ref_words:,} words){dev_set_mark(results, s)}" for s in corpus.test_parts)
    return f"Corpus: {corpus.kind} ({kind}); test sets {', '.join(sets)}."


def rtf_note(results: ResultsJson) -> str:
    """How the real-time factors shown were measured."""
    first_set = results.corpus.test_parts[0]
    return f"real-time factors from features to text in batches, {first_set}, each on one thread, other jobs beside it"


def scan_at_chosen_reward(system: System) -> list[tuple[float, float]]:
    """(weight, WER in percent) of a system's scan on dev, at the length reward it chose, by weight."""
    reward = system.length_reward
    scan = [p for p in system.weight_scan or [] if reward is None or abs(p.length_reward - reward) < 1e-9]
    return sorted((p.weight, p.wer) for p in scan)


def environment_rows(results: ResultsJson) -> list[tuple[str, str]]:
    """(name, value) of the seed and of what is known of the machine and the software."""
    rows = [("seed", results.seed), ("bootstrap samples", f"{results.bootstrap_samples:,}")]
    rows += [(name.replace("_", " "), value) for name, value in results.environment.items()]
    return [(name, str(value)) for name, value in rows if value is not None]


def aligned_lines(utterance: Utterance) -> list[str]:
    """Reference, hypothesis and a letter below each error, word under word, for a font of one width."""
    cells = [("ref", "hyp", "")]
    for ref, hyp in utterance.pairs:
        mark = "I" if ref is None else "D" if hyp is None else "S" if ref != hyp else ""
        cells.append((ref or "*", hyp or "*", mark))
    padded = ([text.ljust(max(map(len, cell))) for text in cell] for cell in cells)
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _facts(results: ResultsJson) -> list[tuple[str, str]]:
    """(figure, what it is) of what one looks for first: compression, the WER of the teacher and of the smallest."""
    facts: list[tuple[str, str]] = []
    teacher, student = (results.system(s) for s in ("teacher", results.smallest))
    if results.compression is not None:
        sizes = " → ".join(f"{s.params.total / 1e6:.2f} M" for s in (teacher, student))
        facts.append((f"{100 * results.compression.params:.1f}%", f"fewer deployed parameters ({sizes})"))
    for set_name in results.corpus.test_parts:
        found = [s.wer[set_name].two_pass if s else None for s in (teacher, student)]
        if all(found):
            wers = f"{found[0].wer:.2f} → {found[1].wer:.2f}%"
            facts.append((wers, f"two-pass WER, teacher → {results.smallest}, {set_name}"))
    int8 = results.on_device.int8.get(results.smallest) if results.on_device else None
    if int8 and int8.size_ratio:
        facts.append(
            (
                f"1/{1 / int8.size_ratio:.1f}",
                f"of the teacher’s bytes on disk: {results.smallest} in int8, teacher in fp32",
            )
        )
    if results.stages:
        total = sum(seconds for _, seconds in stage_rows(results))
        facts.append((format_duration(total), f"wall time of {len(results.stages)} stages"))
    return facts


def _difference(pass_name: Pass, result: Difference) -> dict[str, Any]:
    """The pass, and a paired bootstrap as three cells: difference, interval, p."""
    delta, low, high = (_signed(value) for value in (result.delta_wer, *result.ci95))
    return {"pass": pass_name.title, "cells": [delta, f"{low} to {high}", _bare_p(result.p)]}


def claim_cells(claim: Claim) -> list[str]:
    """Verdict, difference, interval, margin, corrected p, sample."""
    if claim.delta_wer is None:
        return [claim.verdict, *"-----"]
    delta, low, high, margin = (_signed(value) for value in (claim.delta_wer, *claim.ci95, claim.margin))
    p = "-" if claim.p_holm is None else _bare_p(claim.p_holm)
    return [claim.verdict, delta, f"{low} to {high}", margin, p, f"{claim.clusters:,}"]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _bare_p(p: float) -> str:
    return format_p(p).removeprefix("p").removeprefix("=")


def _size_row(results: ResultsJson, system: System) -> list[str]:
    """A system's parameters by part, share of the teacher's that it does without, MB, speed, training."""
    rtf = system.rtf.get(results.corpus.test_parts[0], {})
    return [
        system.name,
        *(f"{getattr(system.params, part):,}" for part in PARTS),
        fewer(results, system),
        f"{system.bytes.total / 1e6:.2f}",
        *("-" if rtf.get(p) is None else f"{rtf[p]:.4f}" for p in Pass),
        "-" if system.updates is None else f"{system.updates:,}",
        format_duration(system.train_seconds),
    ]


def _on_device(on_device: OnDeviceJson, sets: list[str]) -> dict[str, Any]:
    """Size, speed and memory, WER, int8 against fp32, agreement with sherpa-onnx; rows name system and runtime."""
    names = [[row.system, row.runtime.title] for row in on_device.rows]
    wer = {s: [device.wer_cells(row, s) for row in on_device.rows] for s in sets}
    agreements = [
        (
            system,
            precision,
            device.METHOD_TITLES.get(method, method),
            f"{device.percent_same(counts)} ({counts.same} of {counts.of})",
            ", ".join(counts.different) or "-",
        )
        for system, precision, method, counts in device.agreements(on_device)
    ]
    int8 = [
        {"system": system, "set": set_name, **_difference(pass_name, result)}
        for system, set_name, pass_name, result in device.int8_differences(on_device)
    ]
    return {
        "rows": on_device.rows,
        "how_measured": device.how_measured(on_device),
        "cost_groups": [(group, len(below)) for group, below in device.COST_GROUPS],
        "cost_heads": [name for _, below in device.COST_GROUPS for name in below],
        "cost_titles": [f"{group} {name}".rstrip() for group, below in device.COST_GROUPS for name in below or [""]],
        "costs": [[*n, *device.cost_cells(row)] for n, row in zip(names, on_device.rows, strict=True)],
        "wer_below_each_other": [[s, *n, *cells] for s in sets for n, cells in zip(names, wer[s], strict=True)],
        "wer_side_by_side": [[*name, *sum((wer[s][i] for s in sets), [])] for i, name in enumerate(names)],
        "size": device.size_line(on_device),
        "long_audio": device.long_audio_line(on_device),
        "streaming": device.streaming_lines(on_device),
        "quantization": device.quantization_lines(on_device),
        "int8": int8,
        "int8_sentences": [sentence for _, sentence in device.int8_sentences(on_device)],
        "agreements": agreements,
    }


def _weight_row(system: System) -> tuple[str, str, str, str]:
    """(system, chosen weight, chosen length reward, the scan of the weights on dev)."""
    reward = "-" if system.length_reward is None else f"{system.length_reward:g}"
    scan = ", ".join(f"{weight:g}: {wer:.2f}" for weight, wer in scan_at_chosen_reward(system))
    return system.name, f"{system.rescore_weight:g}", reward, scan


def _loss_rows(report: Report) -> list[tuple[str, ...]]:
    """(phase, term, its last value in training, in validation, steps) of every curve."""
    rows = []
    for phase in report.phases:
        for curve in phase.curves:
            train, valid = (f"{points[-1][1]:.4g}" if points else "-" for points in (curve.train, curve.valid))
            rows.append((phase.name, curve.term, train, valid, str(phase.steps)))
    return rows
