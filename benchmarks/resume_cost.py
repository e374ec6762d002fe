"""What it costs to stop a training and go on: seconds from the command to the first step, anew and resumed.

    egs/librispeech/twopass_kd/run.sh --conf mini --stop-stage 2     # makes the data
    python benchmarks/resume_cost.py

Starts a phase, sends it SIGTERM after `--steps` steps, waits until it has saved its state and ended, and gives the same
command again, which goes on after the last step. Medians over `--repeats` rounds.
"""

import signal
import statistics
import tempfile
import time
from pathlib import Path

from common import read_config
from tqdm import tqdm
from training_runs import TrainingRun, training_parser

from twopass_kd.config.environment import describe_environment
from twopass_kd.training.launch import STOPPED

TARGET = 10.0  # seconds


def one_round(run: TrainingRun, steps: int) -> dict[str, float]:
    """Seconds to the first step anew, from the signal to the end, and to the first step resumed."""
    begin = time.perf_counter()
    run.start()
    run.wait_for_step(1)
    anew = time.perf_counter() - begin
    run.wait_for_step(steps)
    begin = time.perf_counter()
    run.process.send_signal(signal.SIGTERM)
    run.finish(STOPPED)
    stopped = time.perf_counter() - begin
    done = max(m["step"] for m in run.metrics())
    begin = time.perf_counter()
    run.start()
    run.wait_for_step(done + 1)
    resumed = time.perf_counter() - begin
    run.process.send_signal(signal.SIGTERM)
    run.finish(STOPPED)
    return {"anew": anew, "to stop": stopped, "resumed": resumed}


def main(argv: list[str] | None = None) -> None:
    parser = training_parser(__doc__)
    parser.add_argument("--world-size", type=int, default=1, help="ranks")
    parser.add_argument("--steps", type=int, default=50, help="before the stop")
    args = parser.parse_args(argv)
    overrides = ["train.log_interval=1", *args.overrides]
    cfg = read_config(args.conf, overrides)
    rounds: list[dict[str, float]] = []
    for _ in tqdm(range(args.repeats), unit="round"):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(one_round(TrainingRun(args, overrides, Path(folder), args.world_size), args.steps))
    median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    print(f"{describe_environment()}\n{cfg.name}, {args.phase}, stopped after {args.steps} steps\n")
    print(f"anew, from the command to the first step   {median['anew']:6.1f} s")
    print(f"from SIGTERM to the end, state saved       {median['to stop']:6.1f} s")
    print(f"resumed, from the command to the next step {median['resumed']:6.1f} s (target {TARGET:g})")
    print(f"the stop cost                              {median['to stop'] + median['resumed']:6.1f} s")


if __name__ == "__main__":
    main()
