"""The commands of the stages: the lines of run.sh, with their placeholders filled in."""

import argparse
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twopass_kd.config.load import exported_systems
from twopass_kd.stages.jobs import Job
from twopass_kd.stages.plan import TRAINING_STAGES, Plan

OVER_SEEDS = "seeds"  # name of the command that reports on all seeds
_GPU = re.compile(r"\d+|(GPU|MIG)-[-/\w]+")


@dataclass(frozen=True)
class Command:
    """A line of run.sh: the stages that run it, the name of its job, its words; with placeholders."""

    stages: range
    name: str
    words: list[str]


def parse_commands(text: str) -> list[Command]:
    """Lines of `STAGE NAME COMMAND...` or `FIRST-LAST NAME COMMAND...`; a backslash at its end continues a line."""
    commands = []
    for line in filter(str.strip, text.replace("\\\n", " ").splitlines()):
        stages, name, *words = shlex.split(line)
        first, _, last = stages.partition("-")
        commands.append(Command(range(int(first), int(last or first) + 1), name, words))
    return commands


def jobs_of_stage(
    plan: Plan, commands: Sequence[Command], stage: int, args: argparse.Namespace, gpus: Sequence[str]
) -> Iterator[Job]:
    """The jobs of a stage in the order of its lines, one for each phase or system where a line is about one.

    Phases and what is decoded come after the phases that they need; elsewhere each line after those above it.
    """
    commands = [c for c in commands if stage in c.stages and (c.name == OVER_SEEDS) == (plan.finished is not None)]
    names = {
        "{phase}": plan.phases(stage),
        "{system}": exported_systems(plan.cfg) if stage == 10 else list(plan.systems()),
    }
    prefix = f"{plan.seed}/" if plan.seed else ""
    above: list[str] = []
    for command in commands:
        jobs = names.get(command.name, [command.name])
        for name in jobs:
            yield Job(
                prefix + name,
                _fill(command.words, {**_values(plan, args), command.name[1:-1]: name}),
                log_of(plan, stage),
                after=[prefix + other for other in (plan.needs(name) if 3 <= stage <= 8 else above)],
                cores=_cores(plan, name, args, gpus) if stage in TRAINING_STAGES else 1,
                threads=args.threads if stage in TRAINING_STAGES else 1,
            )
        above += jobs


def log_of(plan: Plan, stage: int) -> Path:
    return plan.experiment / "log" / f"stage-{stage}.log"


def _values(plan: Plan, args: argparse.Namespace) -> dict[str, str | list[str]]:
    """What the placeholders of run.sh stand for; a list is several words."""
    ranks, srun = [], []
    if args.world_size > 1 or args.nnodes > 1:
        ranks = ["--world-size", str(args.world_size)]
    if args.nnodes > 1:  # they meet at a port of this node, which is the job's first
        port = 20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000
        nodes, cpus = str(args.nnodes), os.environ.get("SLURM_CPUS_PER_TASK", "1")
        ranks += ["--nnodes", nodes, "--rdzv-endpoint", f"{socket.gethostname()}:{port}"]
        srun = ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", "--kill-on-bad-exit=1",
                "--disable-status", "--cpus-per-task", cpus]  # fmt: skip
    return {
        "conf": args.conf,
        "corpus_dir": str(plan.corpus_dir),
        "data_dir": str(plan.data_dir),
        "exp_dir": args.exp_dir,
        "nj": str(args.nj),
        "ranks": ranks,
        "srun": srun,
        "command": args.command,
        "finished": [str(seed) for seed in plan.finished or ()],
        "overrides": list(plan.overrides),
    }


def _fill(words: Sequence[str], values: dict[str, str | list[str]]) -> list[str]:
    filled = []
    for word in words:
        value = values[word[1:-1]] if re.fullmatch(r"\{\w+\}", word) else word
        filled += [value] if isinstance(value, str) else value
    return filled


def _cores(plan: Plan, phase: str, args: argparse.Namespace, gpus: Sequence[str]) -> int:
    """Cores of a training, or its GPUs: one for each rank on a node."""
    ranks = args.world_size
    if args.world_size == args.nnodes == 1 and not gpus:
        ranks = plan.cfg.phases[phase].cpu_ranks
    return ranks if gpus else ranks * args.threads


def visible_gpus() -> list[str]:
    """The GPUs that this process may use; as CUDA does, up to the first word that can be none.

    Raises:
      ValueError: one is named twice.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        words = visible.split(",")
    else:
        ask = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        try:
            words = subprocess.run(ask, capture_output=True, text=True).stdout.splitlines()
        except OSError:
            words = []
    found: list[str] = []
    for word in (re.sub(r"\s", "", word) for word in words):
        if not _GPU.fullmatch(word):
            break
        if word in found:
            raise ValueError(f"`CUDA_VISIBLE_DEVICES` ({visible}) must name each GPU once, else there is none")
        found.append(word)
    return found
