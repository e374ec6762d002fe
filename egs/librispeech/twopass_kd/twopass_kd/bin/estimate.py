"""Print what the trainings of an experiment will cost: steps, memory, work, GPU hours; and how that was computed.

python3 -m twopass_kd.bin.estimate --conf conf/librispeech_960h.yaml --world-size 8
"""

import argparse
import logging
import sys
import textwrap

import torch

from twopass_kd.config.cli import exit_status, experiment_parser
from twopass_kd.config.environment import setup_logging
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.stages.plan import BASELINE, system_of
from twopass_kd.training.estimate import (
    ASSUMED_GPU_MEMORY,
    ASSUMED_TFLOPS,
    CorpusSize,
    corpus_size,
    step_cost,
    steps_per_epoch,
)
from twopass_kd.training.step_cost import TEMPORARIES, TOKENS_PER_SECOND, UTTERANCE_SECONDS, StepCost
from twopass_kd.training.step_split import USABLE, StepSplit, device_memory, split_step

HEADER = ["phase", "learns", "teacher", "epochs", "steps", "a rank's batches", "GiB", "TFLOP a step", "GPU hours"]


def phase_row(cfg: Config, name: str, cost: StepCost, split: StepSplit, size: CorpusSize | None) -> list[str]:
    """The words of a phase's line under `HEADER`."""
    epochs = cfg.phases[name].num_epochs
    steps = "-" if size is None else f"{epochs * steps_per_epoch(size, split):,}"
    hours = "-" if size is None else f"{gpu_hours(cfg, name, cost, size):,.1f}"
    return [
        name,
        f"{cost.learning / 1e6:.1f} M",
        f"{cost.teacher / 1e6:.1f} M" if cost.teacher else "-",
        str(epochs),
        steps,
        f"{split.accum_grad} x {split.max_duration:g} s",
        f"{split.needed / 2**30:.2f}",
        f"{cost.flops * split.seconds / 1e12:.2f}",
        hours,
    ]


def gpu_hours(cfg: Config, name: str, cost: StepCost, size: CorpusSize) -> float:
    """Hours of one GPU for a whole phase, at the assumed speed."""
    return cost.flops * size.seconds * cfg.phases[name].num_epochs / (ASSUMED_TFLOPS[cfg.train.precision] * 1e12) / 3600


def table(rows: list[list[str]]) -> str:
    """Columns under their titles: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[row[0].ljust(widths[0]), *(word.rjust(w) for word, w in zip(row[1:], widths[1:]))] for row in rows]
    return "\n".join("  ".join(line) for line in lines)


def explanation(cfg: Config, largest: str, cost: StepCost, split: StepSplit, gpu: str) -> str:
    """How the numbers came about; `largest` is the phase that needs the most memory, `gpu` whose memory counts."""
    train = cfg.train
    memory = cost.memory(split.max_duration, train.precision)
    parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in memory.items() if value)
    is_half = train.precision != "float32"
    less = f" ({train.precision} needs less)" if is_half else ""
    share = "a twentieth of its peak, since LSTMs go frame by frame" if is_half else "half of its peak"
    if train.max_duration is None:
        batches = (
            f"of each step: its {train.ref_duration:g} s (train.ref_duration) shared among the ranks, in as few as fit"
            f" into {USABLE['cuda']:.0%} of {gpu}; training does the same with its own GPU"
        )
    else:
        batches = "of each step, as train.max_duration and train.accum_grad say"
    texts = {
        "learns": "parameters that learn; teacher: those of the frozen model that teaches",
        "steps": "utterances of the mean length in these batches, which all ranks take at once",
        "a rank's batches": batches,
        "GiB": f"of a rank; {largest}: {parts}. Weights, gradients and Adam's moments by count (4, 4 and 8 bytes each)."
        " Activations: the bytes kept for the backward pass of a random utterance of"
        f" {UTTERANCE_SECONDS:g} s on this CPU in float32{less}, in proportion for {split.max_duration:g} s."
        f" Temporaries: {TEMPORARIES} times the largest output of a layer. What a GPU's own context takes is not in it;"
        " training tries the largest batch first and logs what it takes.",
        "TFLOP a step": "of all ranks: the layers' operations for that utterance"
        f" ({TOKENS_PER_SECOND:g} tokens a second), in proportion; once forward, once more for each gradient of inputs"
        f" and weights. Losses and Adam are left out.",
        "GPU hours": f"assumed, not measured: an A100 that computes {ASSUMED_TFLOPS[train.precision]:g} TFLOP/s in"
        f" {train.precision}, {share}. Validation, waiting for data and for other ranks are left out.",
    }
    return "\n".join(
        textwrap.fill(f"{title:17s}{text}", width=110, subsequent_indent=17 * " ") for title, text in texts.items()
    )


def estimate(args: argparse.Namespace) -> None:
    """Print the table."""
    if args.world_size < 1 or args.nnodes < 1:
        raise ConfigError(f"`--world-size` ({args.world_size}) and `--nnodes` ({args.nnodes}) must be positive")
    cfg, ranks = load_config(args.conf, args.overrides), args.world_size * args.nnodes
    size = corpus_size(cfg, args.data_dir, args.exp_dir)
    memory, gpu = ASSUMED_GPU_MEMORY, f"a GPU's {ASSUMED_GPU_MEMORY / 2**30:g} GiB, as there is none here"
    if torch.cuda.is_available():
        memory = device_memory(torch.device("cuda"))
        gpu = f"this {torch.cuda.get_device_name()}'s {memory / 2**30:.3g} GiB"
    names = [name for name in cfg.phases if not args.no_baseline or system_of(name) != BASELINE]
    costs = {name: step_cost(cfg, name) for name in names}
    splits = {
        name: split_step(cfg.train, ranks, 0.0 if size is None else size.longest, cost, memory, "cuda")
        for name, cost in costs.items()
    }
    audio = "hours of audio unknown before stage 2"
    if size is not None:
        audio = f"{size.seconds / 3600:,.1f} h of audio an epoch ({size.source})"
    print(f"{cfg.name}: {audio}; ranks: {ranks}; {cfg.train.precision}\n")
    print(table([HEADER, *(phase_row(cfg, name, costs[name], splits[name], size) for name in names)]))
    if size is not None:
        hours = sum(gpu_hours(cfg, name, costs[name], size) for name in names)
        wall = f"; {hours / ranks:,.1f} h, if {ranks} ranks are {ranks} times as fast as one" if ranks > 1 else ""
        print(f"\nTotal: {hours:,.1f} GPU hours{wall}")
    largest = max(names, key=lambda name: splits[name].needed)
    print(f"\n{explanation(cfg, largest, costs[largest], splits[largest], gpu)}")


def get_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "train.max_duration=300")
    parser.add_argument("--world-size", type=int, default=1, help="ranks on each node, e.g. its GPUs (default: 1)")
    parser.add_argument("--nnodes", type=int, default=1, help="nodes (default: 1)")
    parser.add_argument("--no-baseline", action="store_true", help=f"leave {BASELINE} out")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    setup_logging()
    logging.getLogger().setLevel(logging.WARNING)  # each phase's losses would tell how they are computed here
    return exit_status(lambda: estimate(args))


if __name__ == "__main__":
    sys.exit(main())
