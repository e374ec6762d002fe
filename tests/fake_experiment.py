"""A made-up experiment folder as stages 3-8 (and 10) leave it: random transcripts, smooth losses, no model behind."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from twopass_kd.config.load import experiment_folder
from twopass_kd.config.schema import Config
from twopass_kd.scoring.wer import Transcript, write_decoding_results

WORDS = "THE A DOCTOR'S GARDEN RIVER OPENED TWENTY SEVEN LETTERS BEFORE WINTER AND NOBODY SAW HIM LEAVE TOWN".split()
SYSTEMS = ("teacher", "student_copy", "student_stage1", "student_stage2", "student")
# share of words that go wrong in greedy search, first pass, two-pass
ERROR_RATES = {
    "teacher": (0.10, 0.085, 0.072),
    "student_copy": (0.16, 0.13, 0.11),
    "student_stage1": (0.12, 0.10, None),
    "student_stage2": (0.12, 0.10, 0.10),
    "student": (0.10, 0.085, 0.073),
}
SIZES = {  # encoder, decoder, joiner, attention_decoder
    "teacher": (1_640_000, 98_000, 205_000, 995_000),
    "student": (520_000, 98_000, 124_000, 482_000),
}


def references(num_utts: int, seed: int) -> list[tuple[str, list[str]]]:
    rng = random.Random(seed)
    return [(f"{100 + i % 7}-{i:04d}-0", rng.choices(WORDS, k=rng.randint(1, 12))) for i in range(num_utts)]


def speaker(cut_id: str) -> str:
    """Who of seven says it."""
    return cut_id.split("-")[0]


def hypothesis(ref: Sequence[str], rate: float, rng: random.Random) -> list[str]:
    """`ref` with about `rate` of its words wrong: half substitutions, the rest insertions and deletions."""
    hyp: list[str] = []
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


def transcripts(num_utts: int, rate: float, seed: int, set_seed: int = 0) -> list[Transcript]:
    rng = random.Random(seed)
    return [(cut_id, ref, hypothesis(ref, rate, rng)) for cut_id, ref in references(num_utts, set_seed)]


def write_fake_experiment(
    exp_dir: Path,
    cfg: Config,
    systems: Sequence[str] = SYSTEMS,
    num_utts: int = 60,
    curves: bool = True,
    on_device: bool = False,
    searched: Sequence[str] = (),
    listened: Sequence[str] = (),
) -> Path:
    """Fill `<exp_dir>/<conf name>`, of a seed among others its folder there, and return it."""
    experiment = experiment_folder(cfg, exp_dir)
    phase_of = {p.report_as: name for name, p in cfg.phases.items() if p.report_as}
    for i, system in enumerate(systems):
        _write_decoded(experiment, cfg, system, phase_of.get(system, system), num_utts, seed=10 * i + 100 * cfg.seed)
        if system in searched:
            _add_searches(experiment / "decode" / system / "decode.json", cfg)
        if system in listened:
            _add_conditions_and_delays(experiment / "decode" / system / "decode.json", cfg)
    for i, (name, phase) in enumerate(cfg.phases.items()):
        if curves:
            _write_metrics(experiment / name, list(phase.loss_scales), phase.num_epochs, seed=i)
    for stage, seconds in enumerate((74, 3, 31, 402, 55, 160, 82, 151, 96)):
        marker = {"stage": stage, "title": f"title of {stage}", "fingerprint": "0" * 16, "seconds": seconds}
        marker["finished"] = f"2026-01-01T0{stage}:00:00"
        _write_json(experiment / ".stages" / f"{stage}.done", marker)
    if on_device:
        measured = [name for name in ("teacher", "student") if name in systems]
        _write_json(experiment / "ondevice.json", on_device_measurements(cfg, measured, phase_of))
    return experiment


def identity_of(cfg: Config, phase: str) -> str:
    """Of a training; that of another seed is another one."""
    return f"identity of {phase}{f', seed {cfg.seed}' if cfg.seeds else ''}"


def on_device_measurements(cfg: Config, systems: Sequence[str], phase_of: dict[str, str]) -> dict:
    """What stage 10 measures: int8 smaller, faster and a little worse, sherpa-onnx without a second pass."""
    sets = cfg.corpus.test_parts
    runtimes = ("pytorch", "onnx", "onnx-int8", "sherpa-onnx", "sherpa-onnx-int8")
    rows = [_on_device_row(s, runtime, identity_of(cfg, phase_of[s]), sets) for s in systems for runtime in runtimes]
    size = {(row["system"], row["runtime"]): row["bytes"] for row in rows}
    ratio = size["student", "onnx-int8"] / size["teacher", "onnx"] if len(systems) == 2 else None
    difference = {"delta_wer": 0.04, "ci95": [-0.21, 0.3], "p": 0.744}
    counts = {
        "greedy_search": {"same": 599, "of": 600, "different": ["103-0003-0"]},
        "modified_beam_search": {"same": 600, "of": 600, "different": []},
    }
    return {
        "set": sets[0],
        "timed_utterances": 40,
        "timed_seconds": 131.2,
        "threads": 1,
        "chunk_ms": 240,
        "rows": rows,
        "agreement": {s: {"fp32": counts, "int8": counts} for s in systems},
        "int8": {
            s: {
                **({"size_ratio": ratio} if s == "student" else {}),
                **{name: {"first_pass": difference, "two_pass": difference} for name in sets},
            }
            for s in systems
        },
        "quantization": {
            s: {
                "dev_parts": cfg.corpus.dev_parts,
                "layers": 5,
                "scan": [{"layer": f"encoder/layers.{i}.lstm", "wer": 7.5 + 0.1 * i, "errors": i} for i in range(5)],
                "left_out": ["encoder/layers.4.lstm"],
                "wer": {"fp32": 7.5, "all_int8": 8.1, "int8": 7.6},
            }
            for s in systems
        },
        "settings": {s: {"beam": 4, "nbest": 4, "rescore_weight": 0.4, "length_reward": 0.0} for s in systems},
        "decoded_seconds": {name: 890.0 for name in sets},
        "streaming": {
            s: {
                name: {"utterances": 300, "same_greedy": 300, "different": [], "encoder_difference": 3.1e-6}
                for name in cfg.corpus.test_parts
            }
            for s in systems
        },
        "long_audio": {"minutes": [1, 60], "peak_mb": [80.1, 80.9]},
    }


def _on_device_row(system: str, runtime: str, identity: str, sets: Sequence[str]) -> dict:
    parts = SIZES["teacher" if system == "teacher" else "student"]
    sherpa, int8 = runtime.startswith("sherpa"), runtime.endswith("int8")
    speed = (2.6 if runtime == "pytorch" else 0.6 if int8 else 1.0) * sum(parts) / 1e9
    wer = {}
    for name in sets:
        rates = [100 * r * (2 if "other" in name else 1) + (0.04 if int8 else 0) for r in ERROR_RATES[system]]
        wer[name] = dict(zip(("greedy_search", "first_pass", "two_pass"), rates, strict=True))
        if sherpa:
            wer[name]["two_pass"] = None
    return {
        "system": system,
        "runtime": runtime,
        "identity": identity,
        "bytes": (1 if int8 else 4) * (sum(parts[:3]) if sherpa else sum(parts)) + 40_000,
        "rtf": {
            "greedy_search": speed,
            "first_pass": 1.2 * speed * (1.05 if sherpa else 1),
            "two_pass": None if sherpa else 1.4 * speed,
        },
        "chunk_ms": {"p50": 400 * speed, "p95": 700 * speed},
        "final_ms": None if sherpa else {"p50": 900 * speed, "p95": 1500 * speed},
        "second_pass_share": None if sherpa else 0.17,
        "peak_mb": 60 + (140 if runtime == "pytorch" else 0) + 4e-6 * sum(parts),
        "wer": wer,
    }


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
    params: dict[str, int] = dict(zip(parts, SIZES["teacher" if system == "teacher" else "student"], strict=True))
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
        "identity": identity_of(cfg, phase),
        "params": params,
        "bytes": {part: 4 * n for part, n in params.items()},
        "train_seconds": 300.0 + seed,
        "updates": 1000,
        "speakers": {s: {i: speaker(i) for i, _ in references(num_utts, n)} for n, s in enumerate(sets)},
        "beam": 4,
        "nbest": 4,
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


def _add_searches(path: Path, cfg: Config) -> None:
    """What `decode.searches` add to a decode.json."""
    decoded = json.loads(path.read_text())
    sets = [*cfg.corpus.test_parts, *cfg.corpus.dev_parts]
    for name, scale in (("fast_beam_search", None), ("fast_beam_search_LG", 0.05)):
        decoded["searches"] = decoded.get("searches", {})
        decoded["searches"][name] = {
            "wer": {s: {"first_pass": 8.25, "two_pass": 7.5} for s in sets},
            "rtf": {s: {"first_pass": 0.0123, "two_pass": 0.0145} for s in sets},
            "lm_scale": scale,
            "scale_scan": [] if scale is None else [{"scale": scale, "wer": 8.0}],
            "rescore_weight": 0.3,
            "length_reward": 0.0,
            "weight_scan": [],
        }
    _write_json(path, decoded)


def _add_conditions_and_delays(path: Path, cfg: Config) -> None:
    """What test sets heard with pauses and in noise, and words whose times are known, add to a decode.json."""
    decoded = json.loads(path.read_text())
    wers = {"greedy_search": 9.5, "first_pass": 8.5, "two_pass": 7.5}
    heard = {"clean": 1.0, "pause-before-2s": 1.05, "babble-10dB": 2.0}
    decoded["conditions"] = {
        part: {name: {search: wer * factor for search, wer in wers.items()} for name, factor in heard.items()}
        for part in cfg.corpus.test_parts
    }
    stages = ("student_stage1", "student_stage2")  # of one encoder
    words = 1235 if path.parent.name in stages else 1234
    delay = {"words": words, "p50": 0.12, "p90": 0.25, "p99": 0.4, "start_mean": 0.1, "end_mean": 0.13}
    delay.update(start_variance=0.01, end_variance=0.02)
    decoded["delays"] = {part: {name: delay for name in list(wers)[:2]} for part in cfg.corpus.test_parts}
    _write_json(path, decoded)


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


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
