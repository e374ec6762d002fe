"""Time of the transducer losses with each backend that can run on a device, and of whole training steps on a CPU.

    python benchmarks/loss_backends.py [--device cuda] [--json FILE]

1. Forward and backward pass of the simple and of the pruned loss on random logits, for each size and topology.
2. On a CPU: a training step of the student of `--conf`, with and without distillation, as train_step.py takes it.

The backends take turns in each round, and times are medians. Ratios are to k2, or where it cannot run to torch.
Targets: torch at most 1.5 times k2 in a whole step on a CPU, triton at least as fast as k2 on a GPU.
"""

import argparse
import json
from pathlib import Path

import torch
from common import Step, make_parser, median_seconds, read_config, training_step

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.schema import Config
from twopass_kd.losses.band import prune_ranges
from twopass_kd.losses.rnnt_backend import BACKENDS, use_backend
from twopass_kd.losses.transducer import make_boundary, pruned_transducer_loss, simple_transducer_loss
from twopass_kd.models.checkpoint import build_model
from twopass_kd.training.estimate import random_utterances
from twopass_kd.training.objective import Objective

SIZES = ["16,60,20,128", "8,300,60,500", "30,400,60,500", "100,400,60,500"]
S_RANGE = 5
TARGETS = {"cpu": ("torch", 1.5), "cuda": ("triton", 1.0)}
Times = dict[str, float]


def backends_of(device: str) -> list[str]:
    """Those that can run there; says why the others cannot."""
    found = []
    for name in BACKENDS:
        try:
            found.append(use_backend(name, device))
        except ValueError as e:
            print(f"without {name}: {e}")
    return found


def with_backend(name: str, device: str, step: Step) -> Step:
    """`step` with that backend, until the device is done."""

    def run() -> None:
        use_backend(name, device)
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def losses(size: str, rnnt_type: str, device: str) -> dict[str, Step]:
    """Forward and backward pass of each loss on one batch of lattices of a size B,T,S,V."""
    B, T, S, V = map(int, size.split(","))
    torch.manual_seed(0)
    symbols = torch.randint(1, V, (B, S), device=device)
    boundary = make_boundary(torch.full((B,), T, device=device), torch.full((B,), S, device=device))
    am, lm = (torch.randn(B, n, V, device=device, requires_grad=True) for n in (T, S + 1))
    _, arcs = simple_transducer_loss(am, lm, symbols, boundary, rnnt_type=rnnt_type)
    ranges = prune_ranges(*arcs, boundary, S_RANGE)
    logits = torch.randn(*ranges.shape, V, device=device, requires_grad=True)

    def simple() -> None:
        loss, _ = simple_transducer_loss(am, lm, symbols, boundary, rnnt_type=rnnt_type)
        torch.autograd.grad(loss.sum(), (am, lm))

    def pruned() -> None:
        loss = pruned_transducer_loss(logits, symbols, ranges, boundary, rnnt_type=rnnt_type)
        torch.autograd.grad(loss.sum(), logits)

    return {"simple": simple, "pruned": pruned}


def training_steps(cfg: Config, seconds: float) -> dict[str, Step]:
    """Whole steps of the student on a batch of `train.max_duration`, with and without distillation."""
    batch = random_utterances(cfg, max(1, int(cfg.train.max_duration / seconds)), seconds)
    student, teacher = (build_model(cfg, which, cfg.tokens.vocab_size) for which in ("student", "teacher"))
    teacher.eval().requires_grad_(False)
    scales = {"simple": 0.5, "pruned": 1.0, "ctc": 0.5}
    steps = {}
    for name, terms in {"step, RNN-T": scales, "step, RNN-T + KD": {**scales, "transducer_kd": 1.0}}.items():
        objective = Objective(student, terms, cfg.loss, cfg.kd, 1, 1, teacher=teacher)
        steps[name] = training_step(student, objective, batch, cfg.train.clip_grad_norm)
    return steps


def compare(step: Step, backends: list[str], device: str, repeats: int) -> Times:
    """Backend -> seconds."""
    return median_seconds({name: with_backend(name, device, step) for name in backends}, repeats)


def row(name: str, times: Times) -> str:
    """Milliseconds of the reference, then of each backend as a ratio to it."""
    reference = "k2" if "k2" in times else "torch"
    ratios = " | ".join(f"{seconds / times[reference]:.2f}" for seconds in times.values())
    return f"| {name} | {1000 * times[reference]:.2f} | {ratios} |"


def verdict(found: dict[str, Times], device: str) -> str:
    """Whether the target of the device is met, where k2 is there to be compared with."""
    backend, most = TARGETS[device]
    compared = [times[backend] / times["k2"] for name, times in found.items()
                if {"k2", backend} <= set(times) and (device == "cuda" or name.startswith("step"))]  # fmt: skip
    if not compared:
        return f"target ({backend} at most {most} times k2): not measured, one of the two cannot run here"
    met = "met" if max(compared) <= most else "MISSED"
    return f"{backend} / k2, largest: {max(compared):.2f} (target at most {most}): {met}"


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help="where the losses run")  # fmt: skip
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="B,T,S,V", help="utterances, frames, tokens, V")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of a training step's utterances")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--json", type=Path, help="write the seconds to this file too")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def main(argv: list | None = None) -> None:
    args = get_parser().parse_args(argv)
    cfg = read_config(args.conf, args.overrides)
    backends = backends_of(args.device)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    environment = describe_environment()
    print(f"{environment}\n{args.device}, {where}\n")
    reference = "k2" if "k2" in backends else "torch"
    print(f"| | {reference}, ms | " + " | ".join(f"{name} / {reference}" for name in backends) + " |")
    print("|---|---|" + "---|" * len(backends))
    found: dict[str, Times] = {}

    def measure(steps: dict[str, Step], suffix: str = "") -> None:
        for name, step in steps.items():
            name += suffix
            found[name] = compare(step, backends, args.device, args.repeats)
            print(row(name, found[name]), flush=True)

    for size in args.sizes:
        for rnnt_type in ("modified", "regular"):
            measure(losses(size, rnnt_type, args.device), f", {rnnt_type}, {size}")
    if args.device == "cpu":
        measure(training_steps(cfg, args.seconds))
    print(f"\n{verdict(found, args.device)}")
    if args.json is not None:
        result = {"environment": environment, "device": args.device, "where": where, "seconds": found}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
