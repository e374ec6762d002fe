"""How much faster two ranks train than one: seconds of audio per second, on the CPU with one thread a rank.

    egs/librispeech/twopass_kd/run.sh --conf mini --stop-stage 2     # makes the data
    python benchmarks/ddp_throughput.py

Trains one epoch of a phase with 1 rank, with 2 ranks, and twice at once with 1 rank each: two trainings that have
nothing to do with each other are the most that two cores can do. They take turns, and each figure is the median over
`--repeats` rounds. What is timed goes from the first lines of metrics.jsonl to the last: no start, no validation.
"""

import os
import statistics
import tempfile
from pathlib import Path

from common import read_config
from tqdm import tqdm
from training_runs import TrainingRun, training_parser

from twopass_kd.config.environment import describe_environment

TARGET = 1.6
LOG_INTERVAL = 5  # steps


def throughput(run: TrainingRun) -> float:
    """Seconds of audio per second of training of a finished run."""
    train = [m for m in run.metrics() if m["split"] == "train"]
    first, last = train[0], train[-1]
    return (last["audio_seconds"] - first["audio_seconds"]) / (last["seconds"] - first["seconds"])


def main(argv: list[str] | None = None) -> None:
    args = training_parser(__doc__).parse_args(argv)
    overrides = [f"phases.{args.phase}.{key}" for key in ("num_epochs=1", "average=1", "sort_first_epoch=false")]
    overrides += [f"train.log_interval={LOG_INTERVAL}", *args.overrides]
    cfg = read_config(args.conf, overrides)
    batch = cfg.train.max_duration or cfg.train.ref_duration  # of each rank: a step of two ranks is twice as long
    overrides.append(f"train.max_duration={batch}")

    def measure(count: int, world_size: int) -> float:
        """The throughput of `count` trainings at once, together."""
        with tempfile.TemporaryDirectory() as folder:
            runs = [TrainingRun(args, overrides, Path(folder) / str(i), world_size) for i in range(count)]
            for run in runs:
                run.start()
            for run in runs:
                run.finish()
            return sum(throughput(run) for run in runs)

    variants = {"1 rank": (1, 1), "2 ranks": (1, 2), "2 trainings of 1 rank": (2, 1)}
    load = os.getloadavg()[0]
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(args.repeats), unit="round"):
        for name, (count, world_size) in variants.items():
            found[name].append(measure(count, world_size))
    median = {name: statistics.median(values) for name, values in found.items()}
    print(f"{describe_environment()}, load average before: {load:.1f}")
    print(f"{cfg.name}, {args.phase}: batches of {batch:g} s a rank\n")
    for name, value in median.items():
        rounds = ", ".join(f"{v:.1f}" for v in found[name])
        ratio = value / median["1 rank"]
        print(f"{name:24s} {value:8.1f} s of audio per second ({rounds}), {ratio:.2f} times one rank")
    ratio = median["2 ranks"] / median["1 rank"]
    print(f"\n2 ranks / 2 trainings of 1 rank: {median['2 ranks'] / median['2 trainings of 1 rank']:.2f}")
    print(f"2 ranks / 1 rank: {ratio:.2f} (target {TARGET}): {'met' if ratio >= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
