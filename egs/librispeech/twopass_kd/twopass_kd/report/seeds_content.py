"""What the pages over seeds say, as plain values."""

from typing import Any

from twopass_kd.files.decode_json import Pass
from twopass_kd.files.seeds_json import SeedsJson, SeedsSystem
from twopass_kd.report.content import claim_cells, format_duration
from twopass_kd.scoring.listening import CONDITIONS_UNIT, condition_tables
from twopass_kd.scoring.summary import dev_set_mark, fewer, format_over_seeds
from twopass_kd.scoring.verdicts import CLAIMS_NOTE, CLAIMS_OVER_SEEDS_NOTE, claimed, verdict


def seeds_content(results: SeedsJson, command: str) -> dict[str, Any]:
    """The values of the templates by name."""
    sets = results.corpus.test_parts
    dev_only = [part for part in results.corpus.dev_parts if part not in sets]
    kind = "synthetic speech" if results.corpus.synthetic else "speech"
    return {
        "results": results,
        "command_line": command,
        "corpus_line": f"Corpus: {results.corpus.kind} ({kind}); test sets "
        + ", ".join(f"{part} ({results.words[part]:,} words){dev_set_mark(results, part)}" for part in sets)
        + ".",
        "pass_titles": {name.value: name.title for name in Pass},
        "num_seeds": f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}",
        "seed_names": ", ".join(map(str, results.seeds)),
        "wer_heads": ["set", "system", *(name.title for name in Pass)],
        "wer_rows": [_wer_row(system, part) for part in [*sets, *dev_only] for system in results.systems],
        "each_heads": ["set", "system", *(f"seed {seed}" for seed in results.seeds)],
        "each_rows": [_each_row(system, part) for part in sets for system in results.systems],
        "claims_note": CLAIMS_OVER_SEEDS_NOTE if len(results.seeds) > 1 else CLAIMS_NOTE,
        "claims": [
            {"claim": claim, "title": claimed(claim), "sentence": verdict(claim), "cells": claim_cells(claim),
             "by_seed": ", ".join(f"{delta:+.2f}" for delta in claim.by_seed)}
            for claim in results.claims
        ],
        "size_heads": ["system", "parameters", "fewer", "updates", "training, mean"],
        "size_rows": [_size_row(results, system) for system in results.systems],
        "condition_tables": condition_tables(results),
        "conditions_unit": f"mean over seeds; {CONDITIONS_UNIT}",
        "environment": [
            (name.replace("_", " "), str(value)) for name, value in results.environment.items() if value is not None
        ],
    }  # fmt: skip


def _wer_row(system: SeedsSystem, part: str) -> list[str]:
    return [part, system.name, *(format_over_seeds(system.wer[part][name]) for name in Pass)]


def _each_row(system: SeedsSystem, part: str) -> list[str]:
    last = system.wer[part][Pass.TWO_PASS] or system.wer[part][Pass.FIRST_PASS]
    return [part, system.name, *(f"{wer:.2f}" for wer in last.each)]


def _size_row(results: SeedsJson, system: SeedsSystem) -> list[str]:
    return [
        system.name,
        f"{system.params.total:,}",
        fewer(results, system),
        "-" if system.updates is None else f"{system.updates:,}",
        format_duration(system.train_seconds.mean),
    ]
