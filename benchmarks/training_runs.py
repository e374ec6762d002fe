"""Trainings as a user starts them, each a process, for benchmarks of whole runs."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RECIPE, make_parser, read_config


def training_parser(description: str) -> argparse.ArgumentParser:
    """The options of benchmarks that train; those of one alone are added to it."""
    parser = make_parser(description)
    parser.add_argument("--data-dir", type=Path, help="what stages 0-2 left (the recipe's data/<conf> if not given)")
    parser.add_argument("--phase", default="teacher/rnnt", help="that needs no other")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


class TrainingRun:
    """One phase of a config, in an experiment folder of its own, with one thread a rank.

    Args:
      args: of `training_parser`: config, phase and data.
      overrides: settings in place of the config's.
      exp_dir: a new folder.
    """

    def __init__(self, args: argparse.Namespace, overrides: Sequence[str], exp_dir: Path, world_size: int) -> None:
        name = read_config(args.conf, overrides).name
        self.folder = exp_dir / name / args.phase
        data_dir = args.data_dir or RECIPE / "data" / name
        train = ["python3", "-m", "twopass_kd.bin.train", "--conf", args.conf.resolve(), "--phase", args.phase]
        folders = ["--data-dir", data_dir.resolve(), "--exp-dir", exp_dir.resolve(), "--world-size", world_size]
        self.command = ["bash", "-c", '. ./path.sh && exec "$@"', "-", *map(str, [*train, *folders, *overrides])]

    def start(self) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.command, cwd=RECIPE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, status: int = 0) -> None:
        """Wait for the end. Raises RuntimeError with the output, if it is not the expected one."""
        output, _ = self.process.communicate()
        if self.process.returncode != status:
            raise RuntimeError(f"{self.command} ended with {self.process.returncode}, not {status}:\n{output}")

    def wait_for_step(self, step: int) -> None:
        """Until metrics.jsonl tells of training step `step`. Raises RuntimeError if the training ends before."""
        while not any(m["split"] == "train" and m["step"] >= step for m in self.metrics()):
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.command} ended before step {step}:\n{self.process.communicate()[0]}")
            time.sleep(0.01)

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl so far."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
