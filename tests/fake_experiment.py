"""A made-up experiment folder as stages 3-8 leave it: random transcripts, smooth losses, no model behind them."""

import json
import math
import random
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from twopass_kd.config import Config
from twopass_kd.wer import Transcript, write_decoding_results

WORDS = "THE A DOCTOR'S GARDEN RIVER OPENED TWENTY SEVEN LETTERS BEFORE WINTER AND NOBODY SAW HIM LEAVE TOWN".split()
SYSTEMS = ("teacher", "student_scratch", "student_stage1", "student_stage2", "student")
# share of words that go wrong in greedy search, first pass, two-pass
ERROR_RATES = {
    "teacher": (0.10, 0.085, 0.072),
    "student_scratch": (0.16, 0.13, 0.11),
    "student_stage1": (0.12, 0.10, None),
    "student_stage2": (0.12, 0.10, 0.10),
    "student": (0.10, 0.085, 0.073),
}
SIZES = {  # encoder, decoder, joiner, attention_decoder
    "teacher": (1_640_000, 98_000, 205_000, 995_000),
    "student": (520_000, 98_000, 124_000, 482_000),
}


def references(num_utts: int, seed: int) -> List[Tuple[str, List[str]]]:
    rng = random.Random(seed)
    return [(f"{100 + i % 7}-{i:04d}-0", rng.choices(WORDS, k=rng.randint(1, 12))) for i in range(num_utts)]


def hypothesis(ref: Sequence[str], rate: float, rng: random.Random) -> List[str]:
    """`ref` with about `rate` of its words wrong: half substitutions, the rest insertions and deletions."""
    hyp: List[str] = []
    for word in ref:
        draw = rng.random()
        if draw < 0.5 * rate:
            hyp.append(rng.choice(WORDS))
        elif draw < 0.75 * rate:
            continue
        elif draw < rate:
            hyp += [word, rng.choice(WORDS)]
        else:
            hyp.append(word)
    return hyp


def transcripts(num_utts: int, rate: float, seed: int, set_seed: int = 0) -> List[Transcript]:
    rng = random.Random(seed)
    return [(cut_id, ref, hypothesis(ref, rate, rng)) for cut_id, ref in references(num_utts, set_seed)]


def write_fake_experiment(
    exp_dir: Path, cfg: Config, systems: Sequence[str] = SYSTEMS, num_utts: int = 60, curves: bool = True
) -> Path:
    """Fill `<exp_dir>/<conf name>` and return it."""
    experiment = exp_dir / cfg.name
    phase_of = {p.report_as: name for name, p in cfg.phases.items() if p.report_as}
    for i, system in enumerate(systems):
        _write_decoded(experiment, cfg, system, phase_of.get(system, system), num_utts, seed=10 * i)
    for i, (name, phase) in enumerate(cfg.phases.items()):
        if curves:
            _write_metrics(experiment / name, list(phase.loss_scales), phase.num_epochs, seed=i)
    for stage, seconds in enumerate((74, 3, 31, 402, 55, 160, 82, 151, 96)):
        marker = {"stage": stage, "title": f"title of {stage}", "fingerprint": "0" * 16, "seconds": seconds}
        marker["finished"] = f"2026-01-01T0{stage}:00:00"
        _write_json(experiment / ".stages" / f"{stage}.done", marker)
    return experiment


def _write_decoded(experiment: Path, cfg: Config, system: str, phase: str, num_utts: int, seed: int) -> None:
    folder = experiment / "decode" / system
    rates = dict(zip(("greedy_search", "first_pass", "two_pass"), ERROR_RATES[system], strict=True))
    sets = [*cfg.corpus.test_parts, *cfg.corpus.dev_parts]
    for n, set_name in enumerate(sets):
        for k, (suffix, rate) in enumerate(rates.items()):
            if rate is not None:
                rate = rate * (2 if "other" in set_name else 1)
                made = transcripts(num_utts, rate, seed=1000 * n + seed + k, set_seed=n)
                write_decoding_results(folder, set_name, suffix, made)
    parts = ("encoder", "decoder", "joiner", "attention_decoder")
    params: Dict[str, int] = dict(zip(parts, SIZES["teacher" if system == "teacher" else "student"], strict=True))
    params["total"] = sum(params.values())
    two_pass = rates["two_pass"] is not None
    scan = [
        {"weight": w / 10, "length_reward": r, "wer": 100 * rates["two_pass"] + 12 * (w / 10 - 0.4) ** 2 + r}
        for w in range(11)
        for r in (0.0, 0.5)
        if two_pass
    ]
    decoded = {
        "system": system,
        "phase": phase,
        "checkpoint": f"{phase}/final.pt",
        "identity": f"identity of {phase}",
        "params": params,
        "bytes": {part: 4 * n for part, n in params.items()},
        "train_seconds": 300.0 + seed,
        "rescore_weight": 0.4 if two_pass else None,
        "length_reward": 0.0 if two_pass else None,
        "weight_scan": scan,
        "rtf": {
            s: {"greedy_search": 0.011, "first_pass": 0.034, "two_pass": 0.041 if two_pass else None} for s in sets
        },
        "audio_seconds": {s: 3.1 * num_utts for s in sets},
    }
    _write_json(folder / "decode.json", decoded)
    (experiment / phase).mkdir(parents=True, exist_ok=True)
    (experiment / phase / "identity").write_text(f"{decoded['identity']}\n", encoding="utf-8")


def _write_metrics(folder: Path, terms: Sequence[str], num_epochs: int, seed: int) -> None:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    total = 366 * num_epochs
    lines = []
    for step in range(50, total + 1, 50):
        splits = ["train", "valid"] if step % 350 == 0 else ["train"]
        for split in splits:
            level = (1.2 if split == "valid" else 1.0) * (0.15 + 5 * math.exp(-4 * step / total))
            values = {t: level * (1 + 0.3 * i) * rng.uniform(0.9, 1.1) for i, t in enumerate(terms)}
            row = {"split": split, "epoch": step // 366 + 1, "step": step, "total_steps": total, "lr": 0.001}
            lines.append(json.dumps({**row, "seconds": 0.18 * step, "loss": sum(values.values()), "terms": values}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, content: Dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
