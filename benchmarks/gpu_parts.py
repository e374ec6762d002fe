"""The parts of gpu_check.sh, each a program: python benchmarks/gpu_parts.py PART [CONF [PHASE]] [--cpu]

Each prints its figures as JSON, one row on a line, as soon as it has them. `--cpu`: at a small size, on the CPU.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from common import RECIPE, Step, read_config, status_bytes
from gpu_check import CONFS, PHASES, Row
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import DeviceType
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.schema import Config
from twopass_kd.losses.band import prune_ranges
from twopass_kd.losses.precision import autocast
from twopass_kd.losses.rnnt_backend import BACKENDS, use_backend
from twopass_kd.losses.transducer import (
    make_boundary,
    pruned_transducer_loss,
    simple_transducer_loss,
)
from twopass_kd.models.checkpoint import build_model
from twopass_kd.models.encoder import num_output_frames
from twopass_kd.search.methods import own_searches
from twopass_kd.search.nbest import NBest
from twopass_kd.search.rescoring import attention_log_probs
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.estimate import build_objective
from twopass_kd.training.launch import launch_ranks
from twopass_kd.training.optimizer_step import OptimizerStep
from twopass_kd.training.padded_rows import encode
from twopass_kd.training.step_cost import count_step, random_utterances
from twopass_kd.training.step_split import rank_memory, split_step
from twopass_kd.training.trainer import in_one_kernel

UTTERANCE = 12.0  # seconds; LibriSpeech's mean
SMALL = [
    *(f"models.{model}.{key}" for model in ("teacher", "student") for key in (
        "encoder.dim=128", "encoder.num_layers=2", "decoder.dim=64", "joiner_dim=64", "attention_decoder.dim=128")),
    "train.ref_duration=12",
    "decode.max_duration=12",
]  # fmt: skip


def config(args: argparse.Namespace) -> Config:
    return read_config(RECIPE / f"conf/{args.conf}.yaml", SMALL if args.cpu else [])


def utterance_seconds(args: argparse.Namespace) -> float:
    return 3.0 if args.cpu else UTTERANCE


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Step, device: torch.device, budget: float) -> float:
    """Median wall time of a step: after one that is not counted, as many as fit into `budget` seconds, 2 to 20.

    On a CPU it is but a trial: 2.
    """
    times: list[float] = []
    budget = 0.0 if device.type == "cpu" else budget
    step()
    begin = time.perf_counter()
    while len(times) < 2 or (len(times) < 20 and time.perf_counter() - begin < budget):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def busy_share(step: Step, device: torch.device) -> float | None:
    """Share of the wall time of a step in which a kernel, or a copy, ran on the device; None if torch sees none."""
    is_gpu = device.type == "cuda"
    kind = DeviceType.CUDA if is_gpu else DeviceType.CPU
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as profiler:
        synchronize(device)
        begin = time.perf_counter()
        step()
        synchronize(device)
        wall = time.perf_counter() - begin
    spans = [(e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type == kind]
    return covered(spans) / 1e6 / wall if spans else None


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def machine(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """The card, its driver's and torch's versions."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        yield {
            "what": "GPU",
            "text": f"{found.name}, compute capability {found.major}.{found.minor}, {found.multi_processor_count} SMs,"
            f" {found.total_memory / 2**30:.1f} GiB, one of {torch.cuda.device_count()}",
        }
    yield {"what": "CUDA", "text": f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"}
    for key, value in describe_environment().items():
        if value is not None:
            yield {"what": key, "text": str(value)}


def losses(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Each backend that runs here: values and gradients in float32 against float64 on the CPU, and its time."""
    B, T, S, V = (4, 40, 10, 30) if args.cpu else (32, 400, 60, 500)
    torch.manual_seed(0)
    am, lm, logits = torch.randn(B, T, V), torch.randn(B, S + 1, V), torch.randn(B, T, 5, V)
    symbols = torch.randint(1, V, (B, S))
    boundary = make_boundary(torch.linspace(T // 2, T, B).long(), torch.full((B,), S))

    def run(inputs: list[Tensor], symbols: Tensor, boundary: Tensor, ranges: Tensor | None) -> list[Tensor]:
        """Simple and pruned losses and the inputs' gradients, then the band; None: as the simple loss chooses it."""
        am, lm, logits = (x.detach().requires_grad_() for x in inputs)
        simple, arcs = simple_transducer_loss(am, lm, symbols, boundary)
        ranges = prune_ranges(*arcs, boundary, 5) if ranges is None else ranges
        pruned = pruned_transducer_loss(logits, symbols, ranges, boundary)
        (simple.sum() + pruned.sum()).backward()
        return [simple.detach(), pruned.detach(), am.grad, lm.grad, logits.grad, ranges]

    use_backend("auto")
    expected = run([am.double(), lm.double(), logits.double()], symbols, boundary, None)
    inputs = [x.to(device) for x in (am, lm, logits)]
    rest = [x.to(device) for x in (symbols, boundary, expected[-1])]  # one band for all: rounding may choose another
    for backend in BACKENDS:
        try:
            use_backend(backend, device)
        except ValueError as e:
            yield {"what": backend, "text": f"cannot run here: {e}"}
            continue
        found = run(inputs, *rest)
        errors = [float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in zip(found[:5], expected[:5])]
        milliseconds = 1000 * seconds_of(partial(run, inputs, *rest), device, budget=2)
        yield {
            "what": backend,
            "value_error": max(errors[:2]),
            "gradient_error": max(errors[2:]),
            "milliseconds": milliseconds,
        }


def step(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Training steps of a phase on random data, in the batch that this device would be given."""
    before = status_bytes("VmRSS")
    cfg, ranks = config(args), Ranks()
    ranks.device = device
    torch.manual_seed(0)
    objective = build_objective(cfg, args.phase, device)
    cost = count_step(cfg, objective)
    split = split_step(cfg.train, 1, utterance_seconds(args), cost, rank_memory(ranks), device.type)
    utterances = max(1, int(split.max_duration / utterance_seconds(args)))
    batch = random_utterances(cfg, utterances, utterance_seconds(args)).to(device)
    model, train = objective.model, split.apply(cfg.train)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], 1e-5, **in_one_kernel(device))
    take_step = OptimizerStep(model, objective, optimizer, train, ranks)
    num_frames = int(num_output_frames(batch.feature_lens, model.encoder.subsampling_factor).sum())
    take = partial(take_step, [batch], num_frames, 0)
    seconds = seconds_of(take, device, budget=4)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:  # by how much the process has grown (Linux)
        peak = status_bytes("VmHWM") - before
    precision = train.precision if device.type == "cuda" else "float32"
    yield {
        "what": f"{utterances} x {utterance_seconds(args):g} s, {precision}",
        "seconds": seconds,
        "frames_per_second": int(batch.feature_lens.sum()) / seconds,
        "audio_seconds_per_second": batch.duration / seconds,
        "peak_gib": peak / 2**30,
        "estimated_gib": cost.total_memory(batch.duration, precision) / 2**30,
        "busy": busy_share(take, device),
        "tflops": cost.flops * batch.duration / seconds / 1e12,
    }


def rows(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """The teacher's encoder, forward and backward, on rows that suit cuDNN's persistent kernels and on others.

    The ratio is of the time of a row to that with the first.
    """
    cfg = config(args)
    encoder: nn.Module = build_model(cfg, "teacher", cfg.tokens.vocab_size).encoder.to(device)
    many = 8 if args.cpu else 96
    variants = {f"{many} rows": (many, False), f"{many + 1} rows": (many + 1, False)}
    variants[f"{many + 1} rows and 7 of zeros"] = (many + 1, True)
    variants[f"{2 * many} rows"] = (2 * many, False)

    def run(count: int, pad: bool) -> None:
        with autocast(device, cfg.train.precision):
            out, _ = encode(encoder, batch.feature[:count], batch.feature_lens[:count], pad)
        out.float().square().mean().backward()

    batch = random_utterances(cfg, 2 * many, utterance_seconds(args)).to(device)
    first = None
    for name, (count, pad) in variants.items():
        seconds = seconds_of(partial(run, count, pad), device, budget=3)
        first = first or seconds / count
        yield {"what": name, "milliseconds": 1000 * seconds, "ratio": seconds / count / first}


def ranks(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """As many ranks as there are GPUs, started as a training's are; each runs `rank`, and rank 0 prints."""
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    options = ["rank", args.conf, *(["--cpu"] if args.cpu else [])]
    status = launch_ranks("gpu_parts", options, Path(), count, 1, None)
    if status:
        raise SystemExit(status)
    yield from ()


def rank(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Add up the teacher's gradients over the ranks by NCCL, or gloo on a CPU, as a step of the optimizer does it."""
    cfg, number, count = config(args), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method="env://")
    size = sum(p.numel() for p in build_model(cfg, "teacher", cfg.tokens.vocab_size).parameters())
    flat = torch.full((size,), float(number + 1), device=device)
    dist.all_reduce(flat)
    expected = count * (count + 1) / 2
    if not bool((flat == expected).all()):
        raise SystemExit(f"all_reduce of {backend} must give {expected:g}, and gives {flat.unique().tolist()[:5]}")
    seconds = seconds_of(partial(dist.all_reduce, torch.zeros_like(flat)), device, budget=0.0)
    dist.destroy_process_group()
    if number == 0:
        yield {
            "what": f"{count} ranks, {backend}, {size / 1e6:.1f} M float32",
            "milliseconds": 1000 * seconds,
            "gigabytes_per_second": 4 * size / seconds / 1e9,
        }


def decoding(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Real-time factors of a student of random weights, from features to tokens: greedy, beam, and rescored."""
    cfg = config(args)
    torch.manual_seed(0)
    model = build_model(cfg, "student", cfg.tokens.vocab_size).eval().to(device)
    with torch.no_grad():  # or it would mostly say blank
        model.joiner.output_linear.weight.mul_(4)
        model.joiner.encoder_proj.weight.mul_(4)
    utterances = int(cfg.decode.max_duration / utterance_seconds(args))
    batch = random_utterances(cfg, utterances, utterance_seconds(args)).to(device)
    found: dict[str, list[NBest]] = {}

    def decode(name: str, search: Callable, second_pass: bool) -> None:
        with torch.no_grad():
            encoder_out, lens, _ = model.encoder(batch.feature, batch.feature_lens)
            found[name] = search(model, encoder_out, lens)
            if second_pass:
                attention_log_probs(model, encoder_out, lens, found[name], sos_id=1, eos_id=1)

    searches = own_searches(cfg)
    variants = {name: (search, False) for name, search in searches.items()}
    variants["first_pass and rescoring"] = (searches["first_pass"], True)
    for name, (search, second_pass) in variants.items():
        seconds = seconds_of(partial(decode, name, search, second_pass), device, budget=5)
        yield {
            "what": f"{name}, {utterances} x {utterance_seconds(args):g} s",
            "real_time_factor": seconds / batch.duration,
            "tokens_per_second": sum(len(nbest[0].tokens) for nbest in found[name]) / seconds,
        }


PARTS = {f.__name__: f for f in (machine, losses, step, rows, ranks, rank, decoding)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("conf", nargs="?", choices=CONFS, default=CONFS[0], help="whose models (default: %(default)s)")
    parser.add_argument("phase", nargs="?", choices=PHASES, default=PHASES[0], help="(default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="at a small size, on the CPU")
    args = parser.parse_args(argv)
    device = torch.device("cpu" if args.cpu else "cuda")
    for row in PARTS[args.part](args, device):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
