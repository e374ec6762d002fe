"""Runs the stages of experiments one after the other, and the trainings and decodings among them side by side.

There are several experiments where there are several seeds: they share their data, and stage 10 takes the first one to
the device.
"""

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from twopass_kd.files import layout
from twopass_kd.stages.commands import Command, jobs_of_stage, log_of, visible_gpus
from twopass_kd.stages.jobs import Job, Runner, say
from twopass_kd.stages.locks import Locks
from twopass_kd.stages.markers import (
    copy_data_marker,
    first_missing,
    is_done,
    marker_path,
    read_marker,
    why_again,
    write_marker,
)
from twopass_kd.stages.plan import TITLES, Plan

RESUMABLE = (0, 2, 3, 4, 5, 6, 7)  # stages that go on where they were


class RunError(ValueError):
    """What keeps a stage from running or ending, and what to do."""


class Stopped(Exception):
    """We were told to stop, and what ran has saved its state."""


class StageRun:
    """Runs the stages that the options (`args`) ask for; `commands` are those of run.sh.

    Attributes:
      plans: one for each seed.
      over_seeds: of the report on all of them; None where there is none.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        args: argparse.Namespace,
        commands: Sequence[Command],
        over_seeds: Plan | None = None,
    ) -> None:
        self.plans = plans
        self.over_seeds = over_seeds
        self.args = args
        self.commands = commands
        # Where Slurm runs a job again, it goes on.
        self.force = args.force and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
        self.locks = Locks(plans[0].data_dir)
        self._data_checked = False
        self._settings_noted = False
        self._gpus_checked = False
        self._left_out: set[str] = set()  # seeds

    @property
    def folder(self) -> Path:
        """Of the experiment, or of all seeds'."""
        return (self.over_seeds or self.plans[0]).experiment

    @property
    def device(self) -> Plan:
        """The experiment that stage 10 takes to the device: the first one that is decoded."""
        return next((plan for plan in self.plans if is_done(plan, 8)), self.plans[0])

    def run(self) -> None:
        """Raises RunError and LockError, or Stopped."""
        first, last = self.args.stage, self.args.stop_stage
        for stage in range(first, min(2, last) + 1):
            self._run_group(self.plans[:1], [stage])
        for plan, stage in itertools.product(self.plans[1:], () if self.args.dry_run else range(3)):
            copy_data_marker(plan, stage)
        # Where a training takes several nodes, trainings and decoding have different ones.
        for group in [range(3, 9)] if self.args.nnodes == 1 else [range(3, 8), range(8, 9)]:
            self._run_group(self.plans, [stage for stage in group if first <= stage <= last])
        if first <= 9 <= last:
            self._run_group(self._decoded(), [9])
        if self.over_seeds and last >= 9:
            self._run_group([replace(self.over_seeds, finished=[plan.cfg.seed for plan in self._decoded()])], [9])
        if last == 10:
            device = self.device
            self._run_group([device], [10])
            self.force = False
            if not device.has_nothing_to_do(10) and (self.args.dry_run or why_again(device, 9)):
                self._run_group([device], [9])  # its report tells of stage 10 too
        if self.args.dry_run:
            self.show_cost()
        elif last >= 9:
            self.show_results()

    def _decoded(self) -> list[Plan]:
        """The experiments that stage 9 scores: among several seeds those that are decoded; the others are named.

        Raises:
          RunError: none is.
        """
        if not self.over_seeds or (self.args.dry_run and self.args.stage <= 8):
            return list(self.plans)
        decoded = []
        for plan in self.plans:
            why = why_again(plan, 8) if marker_path(plan, 8).is_file() else "stage 8 is not done"
            if why is None:
                decoded.append(plan)
            elif plan.seed not in self._left_out:
                say(f"{plan.seed} is left out of the report ({why}); to have it, begin at --stage 3", sys.stdout)
                self._left_out.add(plan.seed)
        if not decoded and self.args.dry_run:
            return list(self.plans)
        if not decoded:
            raise RunError("stage 9 needs one seed at least that is decoded; begin at --stage 3, which goes on")
        return decoded

    def _run_group(self, plans: Sequence[Plan], stages: Sequence[int]) -> None:
        """Stages whose jobs are a graph: each starts when what it needs is there, so that what does not wait for each
        other runs side by side, as far as cores or GPUs go. Stages that are done are left out."""
        pending: dict[Plan, list[int]] = {}
        for plan in plans:
            of_plan: list[int] = []
            for stage in stages:
                if self.args.dry_run:
                    of_plan += [] if plan.has_nothing_to_do(stage) else [stage]
                elif self._has_to_run(plan, stage, of_plan):
                    of_plan.append(stage)
                    self._start(plan, stage, of_plan)
            if of_plan:
                pending[plan] = of_plan
        if not pending:
            return
        first = min(stage for of_plan in pending.values() for stage in of_plan)
        max_jobs, gpus = self.args.nj, []
        if self.args.nnodes > 1 and first in range(3, 8):
            max_jobs = 1  # each training takes all nodes, and all of their GPUs
        elif first in range(3, 9):
            gpus = visible_gpus()
        jobs = {
            (plan, stage): list(jobs_of_stage(plan, self.commands, stage, self.args, gpus))
            for plan, of_plan in pending.items()
            for stage in of_plan
        }
        if self.args.dry_run:
            for job in (job for of_stage in jobs.values() for job in of_stage):
                say(f"OMP_NUM_THREADS={job.threads} {shlex.join(job.command)}", sys.stdout)
            return
        if gpus:
            self._check_gpus()
        for plan, stage in jobs if self.force else []:
            for folder in ["export"] if stage == 10 else plan.phases(stage):
                self._set_aside(plan.experiment / folder)
        runner = Runner([job for of in jobs.values() for job in of], max_jobs, gpus, self.locks.descriptors)
        status = runner.run()
        unfinished = [found for plan in pending for found in self._end_finished(plan, jobs)]
        if status:
            self._tell_why_not(status, runner, unfinished or list(jobs)[-1:])

    def _has_to_run(self, plan: Plan, stage: int, pending: Sequence[int]) -> bool:
        """Whether a stage is not done, its settings changed, or others ran or will run before it; which is said."""
        if plan.has_nothing_to_do(stage):
            _tell(plan, f"Stage {stage}: {plan.why_nothing(stage)}")
            return False
        marker = marker_path(plan, stage)
        if marker.is_file() and not self.force and plan.finished is None:
            why = why_again(plan, stage) or (f"stage {pending[0]} does" if pending else None)
            if why is None:
                copy_data_marker(plan, stage)
                done = read_marker(marker)
                when = f"{done.get('seconds')} s on {done.get('finished')}"
                _tell(plan, f"Stage {stage}: done already ({when}); --force runs it again")
                return False
            _tell(plan, f"Stage {stage} runs again: {why}")
        return True

    def _start(self, plan: Plan, stage: int, pending: Sequence[int]) -> None:
        """Check a stage's inputs, lock its folders and say what it does."""
        self.check_data(stage, pending)
        self.check_inputs(plan, stage, pending)
        self.locks.take(plan.experiment, stage)
        phases = f" ({', '.join(plan.phases(stage))})" if plan.phases(stage) else ""
        needs = summary([path for _, path in plan.inputs(stage)])
        title = TITLES[stage] if plan.finished is None else f"report on seeds {', '.join(map(str, plan.finished))}"
        _tell(plan, f"Stage {stage}: {title}{phases}{f'; needs {needs}' if needs else ''}; log {log_of(plan, stage)}")
        if stage != 9:  # interrupted, it is not done either; but the report of 9 tells of 9
            marker_path(plan, stage).unlink(missing_ok=True)

    def check_inputs(self, plan: Plan, stage: int, pending: Sequence[int] = ()) -> None:
        """Raises RunError where a file is missing that none of the `pending` stages makes."""
        for maker, path in plan.inputs(stage):
            if maker not in pending and not path.exists():
                first = maker  # what it reads may be missing too
                while missing := [earlier for earlier, other in plan.inputs(first) if not other.exists()]:
                    first = min(missing)
                make = ["./run.sh", "--stage", str(first), "--stop-stage", str(maker), *self.args.given]
                raise RunError(
                    f"{path} is missing, which stage {stage} reads; stage {maker} makes it: {shlex.join(make)}; where"
                    " it is elsewhere, name the folder (--data-dir, --exp-dir)"
                )

    def check_data(self, stage: int, pending: Sequence[int] = ()) -> None:
        """Raises RunError where a stage may not work with the data folder, or cannot."""
        plan = self.plans[0]  # of all, here
        if stage <= 2:
            self._check_data_is_ours()
        elif stage != 9:
            self._check_their_data(stage)
            made = read_marker(marker_path(plan, 2)).get("settings")
            if made and made != plan.settings(2) and 2 not in pending and not self._settings_noted:
                # By now they may have changed, or been another experiment's.
                say(
                    f"note: {plan.data_dir} was made with other settings of corpus, features or tokens"
                    " (corpus.speed_perturb, say) and is used as it is; to have it made with yours start at --stage 0",
                    sys.stdout,
                )
                self._settings_noted = True

    def _check_data_is_ours(self) -> None:
        """Stages 0-2 would replace manifests, tokens and features that run.sh did not make."""
        plan = self.plans[0]
        data_dir = plan.data_dir
        if not (data_dir / ".stages").is_dir() and not (data_dir / ".lock").is_file():
            for pattern in ("manifests/*", "fbank/*", "lang_bpe_*"):
                for found in sorted(data_dir.glob(pattern)):
                    raise RunError(
                        f"`--data-dir` ({data_dir}) has {found.relative_to(data_dir)}, which run.sh did not make, and"
                        " stages 0 to 2 would replace it; choose another --data-dir, or start at --stage 3, which takes"
                        " what is there"
                    )
        for part in plan.parts():
            source = layout.features_dir(data_dir, part) / "source.json"
            if layout.cuts_path(data_dir, part).exists() and not source.exists():
                raise RunError(
                    f"`--data-dir` ({data_dir}) has features of {part} that run.sh did not make, and stages 0 to 2"
                    " would replace them; start at --stage 3, which takes them, or choose another --data-dir"
                )

    def _check_their_data(self, stage: int) -> None:
        """Data that stages 0-2 did not make are looked at once, before the first stage that reads them."""
        plan = self.plans[0]
        data_dir = plan.data_dir
        if self._data_checked or (data_dir / ".stages").is_dir() or not (data_dir / "fbank").is_dir():
            return
        say(f"Checking {data_dir}, which run.sh did not make", sys.stdout)
        check = ["python3", "local/check_data.py", "--conf", self.args.conf, "--data-dir", str(data_dir)]
        check += ["--stage", str(stage), "--stop-stage", str(self.args.stop_stage), *plan.overrides]
        if subprocess.run(check).returncode:
            raise SystemExit(1)  # it has said why
        self._data_checked = True

    def _check_gpus(self) -> None:
        """The GPUs are tried once, before the first stage that uses them."""
        if self._gpus_checked:
            return
        check = ["python3", "-m", "twopass_kd.bin.check_env", "--conf", self.args.conf, *self.plans[0].overrides]
        if subprocess.run(check).returncode:
            raise SystemExit(1)  # it has said why
        self._gpus_checked = True

    def _set_aside(self, folder: Path) -> None:
        """Rename a folder, so that what makes it starts anew."""
        if folder.exists():
            folder.rename(f"{folder}.{time.strftime('%Y%m%d-%H%M%S')}")
            say(f"  moved {folder} aside", sys.stdout)

    def _end_finished(self, plan: Plan, jobs: dict[tuple[Plan, int], list[Job]]) -> list[tuple[Plan, int]]:
        """Mark those stages of an experiment done whose jobs have all ended well; returns the others.

        The seconds of a stage are what it adds to those before, so that the seconds of all are the time that they took
        together.
        """
        unfinished, reached = [], 0.0
        for stage, of_stage in ((stage, of_stage) for (of, stage), of_stage in jobs.items() if of is plan):
            ends = [job.ended for job in of_stage if job.ended is not None]
            if len(ends) < len(of_stage):
                unfinished.append((plan, stage))
                continue
            start = max(reached, min(job.started for job in of_stage))
            reached = max(start, *ends)
            missing = first_missing(plan.outputs(stage))
            if missing:
                raise RunError(f"stage {stage} ended without leaving {missing}; its log: {log_of(plan, stage)}")
            seconds = round(reached - start)
            if plan.finished is None:
                write_marker(plan, stage, seconds)
            _tell(plan, f"Stage {stage}: {seconds} s; left {summary(plan.outputs(stage))}")
        return unfinished

    def _tell_why_not(self, status: int, runner: Runner, unfinished: Sequence[tuple[Plan, int]]) -> None:
        plan, stage = unfinished[0]
        if runner.requeue or _is_preempted():
            if stage not in RESUMABLE:
                raise RunError(f"Slurm ends this job before stage {stage} is done; give it more time (slurm.*.time)")
            job_id = os.environ["SLURM_JOB_ID"]
            say(f"Stage {stage} has saved its state and goes on when Slurm runs job {job_id} again", sys.stdout)
            subprocess.run(["scontrol", "requeue", job_id])
            say("Waiting a minute for Slurm to end this one", sys.stdout)
            time.sleep(60)
        if runner.signals:
            without = ", without --force," if self.force else ""
            raise Stopped(f"Stage {stage} stopped; the same command{without} goes on from here")
        others = ""
        if self.over_seeds and stage > 2:
            others = "; --seed N goes on with another seed alone, and --stage 9 reports on those that are decoded"
        if len(unfinished) > 1:
            stages = dict.fromkeys(stage for _, stage in unfinished)
            raise RunError(f"stages {' '.join(map(str, stages))} are not done, since the command above failed{others}")
        raise RunError(f"stage {stage} ({TITLES[stage]}) failed; its log: {log_of(plan, stage)}{others}")

    def show_cost(self) -> None:
        """Print what the trainings of LibriSpeech cost, after what --dry-run has printed."""
        plan, args = self.plans[0], self.args
        if not plan.cfg.corpus.kind.endswith("librispeech"):
            return
        of = f" of each of the {len(self.plans)} seeds" if self.over_seeds else ""
        say(f"\nWhat the trainings{of} cost (computing it takes up to a minute):", sys.stdout)
        command = ["python3", "-m", "twopass_kd.bin.estimate", "--conf", args.conf, "--data-dir",
                   str(plan.data_dir), "--exp-dir", args.exp_dir, "--world-size", str(args.world_size),
                   "--nnodes", str(args.nnodes)]  # fmt: skip
        command += [] if plan.baseline else ["--no-baseline"]
        if subprocess.run([*command, *plan.overrides]).returncode:
            raise SystemExit(1)  # it has said why

    def show_results(self) -> None:
        from twopass_kd.scoring.results import load_results  # these take a while to import
        from twopass_kd.scoring.seeds import load_seeds
        from twopass_kd.scoring.summary import seeds_text, summary_text

        folder = self.folder
        if self.over_seeds:
            text, names = seeds_text(load_seeds(folder)), ("seeds.json", "seeds.html", "seeds.md")
        else:
            text, names = summary_text(load_results(folder)), ("results.json", "report.html", "report.md")
        say(text, sys.stdout)
        say(f"results: {folder}/{names[0]}", sys.stdout)
        say(f"report:  {folder}/{names[1]} (and {names[2]})", sys.stdout)


def _tell(plan: Plan, text: str) -> None:
    """Say it to the terminal, of a seed among others with its name."""
    alone = plan.finished is not None or not plan.seed
    say(text if alone else f"{plan.seed}: {text}", sys.stdout)


def summary(paths: Sequence[Path]) -> str:
    """The first path, and how many more there are; nothing where there are none."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}" if paths else ""


def _is_preempted() -> bool:
    """Whether Slurm takes the nodes of this job for another one. It tells the steps of srun so, and not always us."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None:
        return False
    try:
        said = subprocess.run(["scontrol", "show", "job", job_id], capture_output=True, text=True).stdout
    except OSError:
        return False
    return re.search(r"PreemptTime=\d", said) is not None
