"""Training steps of full-size models: seconds, frames per second, memory, and how busy a GPU is.

    python benchmarks/full_size_step.py                                     # a few steps on short audio, on the CPU
    python benchmarks/full_size_step.py --device cuda --steps 50            # batches of the config's size, on a GPU

Each phase of the config takes real steps of the trainer (forward, backward, clipping, Adam) on random data in a
process of its own. Memory is the peak of models, optimizer and steps: allocated by torch on a GPU, the resident set
above what the imports took on a CPU (Linux). Beside it stands what `bin/estimate.py` says of a batch like this. `busy`
is the share of time in which a kernel ran on the GPU, as nvidia-smi samples it during the steps that are timed.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import in_new_process, make_parser, peak_extra_bytes, read_config
from torch.optim import AdamW

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.schema import Config
from twopass_kd.models.encoder import num_output_frames
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.estimate import build_objective, random_utterances, step_cost
from twopass_kd.training.optimizer_step import OptimizerStep

HEADER = f"{'phase':24s} {'s a step':>9s} {'frames/s':>10s} {'peak GiB':>9s} {'estimate':>9s} {'busy':>6s}"


def measure(cfg: Config, phase: str, ranks: Ranks, utterances: int, seconds: float, steps: int) -> dict[str, Any]:
    """Take one step that is not timed and `steps` that are; returns seconds, bytes and the GPU's busy share."""
    torch.manual_seed(0)
    objective = build_objective(cfg, phase, ranks.device)
    model = objective.model.train()
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    step = OptimizerStep(model, objective, optimizer, cfg.train.precision, 2.0, None, ranks)
    batch = random_utterances(cfg, utterances, seconds)
    if ranks.device.type == "cuda":
        batch = batch.pin_memory()
    num_frames = int(num_output_frames(batch.feature_lens, model.encoder.subsampling_factor).sum())
    step([batch.to(ranks.device)], num_frames, 0)
    times: list[float] = []
    with busy_percents(ranks.device) as percents:
        for n in range(steps):
            begin = time.perf_counter()
            step([batch.to(ranks.device)], num_frames, n + 1)
            if ranks.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else 0
    return {"seconds": statistics.median(times), "peak": peak, "busy": statistics.mean(percents) if percents else None}


@contextmanager
def busy_percents(device: torch.device) -> Iterator[list[float]]:
    """Yields a list that in the end has the samples of nvidia-smi; none on a CPU or where there is no such program."""
    percents: list[float] = []
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        yield percents
        return
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with subprocess.Popen([*query, "--loop-ms=200"], stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield percents
        finally:
            sampler.terminate()
            percents += [float(word) for word in sampler.communicate()[0].split() if word.isdigit()]


def measure_phase(cfg: Config, phase: str, args: argparse.Namespace) -> dict[str, Any]:
    """`measure` of a phase, with its peak memory on any device."""
    ranks = Ranks()
    ranks.device = torch.device(args.device)
    found: dict[str, Any] = {}

    def work() -> None:
        found.update(measure(cfg, phase, ranks, args.utterances, args.seconds, args.steps))

    if args.device == "cuda":
        work()
    else:
        found["peak"] = peak_extra_bytes(work)
    return found


def line(cfg: Config, phase: str, args: argparse.Namespace) -> str:
    """Measure a phase in a process of its own; its words under `HEADER`."""
    found = in_new_process(measure_phase, cfg, phase, args)
    duration = args.utterances * args.seconds
    estimate = sum(step_cost(cfg, phase).memory(duration, precision(cfg, args.device)).values())
    busy = "-" if found["busy"] is None else f"{found['busy']:.0f} %"
    return (
        f"{phase:24s} {found['seconds']:9.3f} {100 * duration / found['seconds']:10.0f} {found['peak'] / 2**30:9.2f} "
        f"{estimate / 2**30:9.2f} {busy:>6s}"
    )


def precision(cfg: Config, device: str) -> str:
    """What a device really computes in."""
    return "float32" if device == "cpu" else cfg.train.precision


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, conf="librispeech_100h")
    parser.add_argument("--phase", help="measure this one only (all if not given)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the steps run")
    parser.add_argument("--seconds", type=float, help="of an utterance (if not given, 3 on a CPU, 12 on a GPU)")
    parser.add_argument("--utterances", type=int, help="(if not given, 2 on a CPU; fill train.max_duration on a GPU)")
    parser.add_argument("--steps", type=int, default=2, help="that are timed, after one that is not")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    cfg = read_config(args.conf, args.overrides)
    on_cpu = args.device == "cpu"
    args.seconds = args.seconds or (3.0 if on_cpu else 12.0)
    args.utterances = args.utterances or (2 if on_cpu else int(cfg.train.ref_duration / args.seconds))
    device = f"{torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name()
    print(f"{describe_environment()}\n\n{cfg.name} on {device}, {precision(cfg, args.device)}: batch of ", end="")
    print(f"{args.utterances} x {args.seconds:g} s\n\n{HEADER}")
    for phase in cfg.phases if args.phase is None else [args.phase]:
        print(line(cfg, phase, args), flush=True)


if __name__ == "__main__":
    main()
