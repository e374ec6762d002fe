"""Submits the stages to Slurm as a chain of batch jobs, and shows how far the chain is.

Each job runs one stage by `./run.sh --launcher local`, after the one before it has succeeded; features are computed by
an array of jobs before stage 2 collects them. Where there are several seeds, stages 3 to 8 are arrays of them: a seed
goes on when it has ended the stage before, whatever the others do, and stage 9 reports on those that came through. A
job that Slurm is about to end (time limit, preemption) gets SIGUSR1 a minute before, on which run.sh saves and requeues
it.

(The package submitit was considered: it pickles Python functions and waits for their results, and requeues them by a
protocol of its own. These jobs are calls of run.sh, and sbatch is all they need.)
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twopass_kd.files.json_model import JsonModel, read_json
from twopass_kd.files.write import write_text_atomically
from twopass_kd.stages.markers import is_done, marker_path, read_marker, why_again
from twopass_kd.stages.plan import TITLES, TRAINING_STAGES, Plan
from twopass_kd.stages.run import StageRun

GPU_STAGES = range(3, 9)
SECONDS_TO_SAVE = 60  # between Slurm's SIGUSR1 and the end of a job


class SubmittedJob(JsonModel):
    """A row of slurm.json: a job that was submitted."""

    name: str
    """As `squeue` shows it."""
    stage: int
    """The stage that it runs."""
    job_id: str
    """Slurm's number."""
    log: str
    """Where its output is; of an array with %a."""


class SlurmError(ValueError):
    """What Slurm answered, and what to do."""


@dataclass
class BatchJob:
    """A job of the chain.

    Attributes:
      log: with sbatch's %j or %A_%a.
      options: of sbatch.
      script: without its first lines.
      after: what has to become of the job before it, in sbatch's words.
    """

    name: str
    stage: int
    log: Path
    options: list[str]
    script: str
    after: str = "afterok"

    def command(self, after: str | None) -> list[str]:
        """The command that submits it, and reads its script; the first one of a chain is held."""
        dependency = [f"--dependency={self.after}:{after}", "--kill-on-invalid-dep=yes"] if after else ["--hold"]
        return ["sbatch", "--parsable", f"--job-name={self.name}", f"--output={self.log}", "--open-mode=append",
                "--requeue", f"--signal=B:USR1@{SECONDS_TO_SAVE}", *dependency, *self.options]  # fmt: skip

    def whole_script(self) -> str:
        return f"#!/usr/bin/env bash\ncd {shlex.quote(str(Path.cwd()))} || exit 1\n{self.script}"


def call(*command: str, script: str | None = None) -> str:
    """What a command of Slurm prints.

    Raises:
      SlurmError: it is not there or fails.
    """
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise SlurmError(f"`{command[0]}` must be on PATH for Slurm's jobs; call this on a node of the cluster") from e
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise SlurmError(f"{command[0]} failed: {said} (does `sinfo` show a cluster here?)")
    return done.stdout.strip()


def resources(plan: Plan, stage: int, world_size: int, nnodes: int) -> list[str]:
    """The options of sbatch that say what a stage needs."""
    job = plan.cfg.slurm.gpu if stage in GPU_STAGES else plan.cfg.slurm.cpu
    ranks, nodes = (world_size, nnodes) if stage in TRAINING_STAGES else (1, 1)
    options = [f"--nodes={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus * ranks}", f"--mem={job.mem}",
               f"--time={job.time}"]  # fmt: skip
    options += [f"--gres=gpu:{job.gpus * ranks}"] if job.gpus else []
    options += [f"--partition={job.partition}"] if job.partition else []
    return options + list(job.options)


def features_script(plan: Plan, args: argparse.Namespace) -> str:
    """What each task of the array runs: every N-th chunk of the features; requeued, it goes on with the next."""
    data_dir, slurm = str(plan.data_dir), plan.cfg.slurm
    lock = ["python3", "-m", "twopass_kd.stages.locks", data_dir]
    compute = ["python3", "local/compute_fbank.py", "--conf", args.conf, "--data-dir", data_dir, "--nj",
               str(slurm.cpu.cpus)]  # fmt: skip
    shard = f'--shard "$SLURM_ARRAY_TASK_ID/{slurm.feature_jobs}"'
    return (
        "trap 'kill %1; scontrol requeue \"$SLURM_JOB_ID\"' USR1\n"
        f"{shlex.join([*lock, *compute])} {shard} {shlex.join(args.overrides)} &\n"
        "wait $!\n"
    )


def chain(stage_run: StageRun, args: argparse.Namespace, command: Sequence[str], first: int) -> Iterator[BatchJob]:
    """The jobs of stages `first` to the last one that is asked for; `command` is run.sh with what every stage gets."""
    plan, seeds = stage_run.plans[0], [str(plan.cfg.seed) for plan in stage_run.plans]
    # The same tasks in all stages, so that they follow each other.
    every = args.force or args.dry_run or first <= 2  # what has new data is not over
    tasks = [i for i, p in enumerate(stage_run.plans) if every or not _is_over(p, first, args)]
    log_dir, previous = stage_run.folder.resolve() / "log", None
    for stage in range(first, args.stop_stage + 1):
        if plan.has_nothing_to_do(stage):
            continue
        needs = resources(plan, stage, args.world_size, args.nnodes)
        if stage == 2 and plan.cfg.slurm.feature_jobs > 1:
            array = [*needs, f"--array=0-{plan.cfg.slurm.feature_jobs - 1}"]
            log = log_dir / "slurm-features-%A_%a.out"
            yield BatchJob(f"features.{plan.cfg.name}", 2, log, array, features_script(plan, args))
        run = [*command, *(["--force"] if args.force else []), *args.overrides]
        run += ["--launcher", "local", "--stage", str(stage), "--stop-stage", str(stage)]
        job = BatchJob(f"s{stage}.{plan.cfg.name}", stage, log_dir / f"slurm-stage-{stage}-%j.out", needs,
                       f"exec {shlex.join(run)}\n")  # fmt: skip
        if stage_run.over_seeds and stage in GPU_STAGES:
            job.options = [*needs, f"--array={','.join(map(str, tasks))}"]
            job.log = log_dir / f"slurm-stage-{stage}-%A_%a.out"
            job.script = (
                f'seeds=({" ".join(seeds)})\nexec {shlex.join(run)} --seed "${{seeds[$SLURM_ARRAY_TASK_ID]}}"\n'
            )
            job.after = "aftercorr" if previous in GPU_STAGES else "afterok"
        elif stage_run.over_seeds and stage == 9:
            job.after = "afterany"  # it says which seeds are missing
        yield job
        previous = stage


def _is_over(plan: Plan, first: int, args: argparse.Namespace) -> bool:
    """Whether a seed has nothing left to train or decode."""
    last = min(args.stop_stage, max(GPU_STAGES))
    return all(is_done(plan, s) for s in range(first, last + 1) if s in GPU_STAGES and not plan.has_nothing_to_do(s))


def _is_stage_done(run: StageRun, stage: int) -> bool:
    """Whether a stage is done in all experiments; stage 10 in one, and stage 9 of several seeds has reported on all."""
    plans = [run.device] if stage == 10 else run.plans
    if not all(is_done(plan, stage) for plan in plans):
        return False
    if stage != 9 or run.over_seeds is None:
        return True
    report, markers = run.folder / "seeds.json", [marker_path(plan, 9) for plan in plans]
    return report.is_file() and report.stat().st_mtime >= max(path.stat().st_mtime for path in markers)


def submit(run: StageRun, args: argparse.Namespace, command: Sequence[str]) -> None:
    """Submit the stages, without those that have nothing to train and the first ones if they are done; or print them.

    Held until the whole chain is there, so that a failure in the middle leaves nothing behind.
    """
    plan, first = run.plans[0], args.stage
    while first <= args.stop_stage:
        if plan.has_nothing_to_do(first):
            print(f"Stage {first}: {plan.why_nothing(first)}")
        elif not args.force and not args.dry_run and _is_stage_done(run, first):
            print(f"Stage {first}: done already")
        else:
            break
        first += 1
    if first > args.stop_stage:
        return
    batch_jobs = list(chain(run, args, [*command, *args.running], first))
    if args.dry_run:
        for i, job in enumerate(batch_jobs):
            print(f"{shlex.join(job.command('PREVIOUS_JOB' if i else None))} <<'END'\n{job.whole_script()}END")
        return
    run.check_data(first)
    for plan in run.plans if first < 9 or run.over_seeds is None else ():  # stage 9 names the seeds that are not there
        run.check_inputs(plan, first)
    show_status = shlex.join([command[0], "--status", *command[1:], *args.running, *args.overrides])
    in_queue = {row["job_id"] for row in queued([job["job_id"] for job in read_chain(run.folder)])}
    if in_queue:
        ids = " ".join(sorted(in_queue))
        raise SlurmError(
            f"{run.folder} has jobs in the queue already; see them by `{show_status}`, or cancel them: scancel {ids}"
        )
    run.folder.joinpath("log").mkdir(parents=True, exist_ok=True)
    jobs: list[dict[str, Any]] = []
    try:
        for job in batch_jobs:
            jobs.append(_submit_one(job, jobs[-1]["job_id"] if jobs else None))
    except SlurmError as e:
        for submitted in jobs:
            call("scancel", submitted["job_id"])
        raise SlurmError(f"{e}. Nothing stays in the queue") from e
    write_text_atomically(chain_path(run.folder), json.dumps(jobs, indent=1) + "\n")
    call("scontrol", "release", jobs[0]["job_id"])
    for submitted in jobs:
        log = submitted["log"].replace("%a", "*")
        print(f"submitted {submitted['name']} as job {submitted['job_id']}; its log will be {log}")
    print(f"see how far it is: {show_status}")


def _submit_one(job: BatchJob, after: str | None) -> dict[str, Any]:
    try:
        job_id = call(*job.command(after), script=job.whole_script()).split(";")[0]
    except SlurmError as e:
        kind = "gpu" if job.stage in GPU_STAGES else "cpu"
        raise SlurmError(f"stage {job.stage}, which asks for what `slurm.{kind}` says, was refused: {e}") from e
    log = str(job.log).replace("%j", job_id).replace("%A", job_id)
    return {"name": job.name, "stage": job.stage, "job_id": job_id, "log": log}


def chain_path(folder: Path) -> Path:
    """Where the jobs that were submitted last are listed."""
    return folder / ".stages" / "slurm.json"


def read_chain(folder: Path) -> list[dict[str, Any]]:
    """The jobs that were submitted last: name, stage, job_id, log (of an array with %a)."""
    if not chain_path(folder).is_file():
        return []
    jobs = read_json(chain_path(folder), list[SubmittedJob], "remove it; `squeue` shows the jobs", SlurmError)
    return [job.model_dump() for job in jobs]


def queued(job_ids: Sequence[str]) -> list[dict[str, str]]:
    """Id, number in the array, state, elapsed time and reason of those jobs and their tasks that Slurm still has."""
    names, rows = ("job_id", "task", "state", "elapsed", "reason"), []
    for line in call("squeue", "--noheader", "--all", "--array", "--format=%F|%K|%T|%M|%r").splitlines():
        row = dict(zip(names, line.split("|", 4), strict=True))
        rows += [row] if row["job_id"] in job_ids else []
    return rows


def show_status(run: StageRun) -> None:
    """Print the state of every stage: what its marker says, how far it is, and its job; of each seed, where there are
    several."""
    submitted = read_chain(run.folder)
    try:
        states = queued([job["job_id"] for job in submitted]) if submitted else []
    except SlurmError as e:
        print(f"Slurm cannot be asked, so that jobs in its queue are not shown: {e}", file=sys.stderr)
        states = []
    for number, plan in enumerate(run.plans):
        if plan.seed:
            print(f"{plan.seed}:")
        _show_status(plan, number, submitted, states, range(11) if plan is run.device else range(10))
    if run.over_seeds:
        print(f"report on all seeds: {'done' if _is_stage_done(run, 9) else 'not done'}")
    logs = " and ".join(f"{plan.experiment}/log/stage-*.log" for plan in run.plans)
    print(f"the stages' own logs: {logs}; the same ./run.sh command goes on where it ended")


def _show_status(
    plan: Plan, number: int, submitted: list[dict[str, Any]], states: list[dict[str, str]], stages: Sequence[int]
) -> None:
    """The table of one experiment, the jobs of whose stages 3 to 8 may be the tasks of this number in arrays."""
    rows = [["stage", "", "job", "state", "time", ""]]
    for stage in stages:
        for job in [job for job in submitted if job["stage"] == stage] or [{"name": "", "job_id": "", "log": ""}]:
            task = str(number) if stage in GPU_STAGES and "%a" in job["log"] else None
            its = [row for row in states if row["job_id"] == job["job_id"] and task in (None, row["task"])]
            its.sort(key=lambda row: row["state"] != "RUNNING")  # of several tasks one that runs
            if not plan.has_nothing_to_do(stage):
                log = job["log"].replace("%a", task or "*")
                rows.append(_row(plan, stage, {**job, "log": log}, its[0] if its else None))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths)] + row[-1:]).rstrip())


def _row(plan: Plan, stage: int, job: dict[str, Any], queued_as: dict[str, str] | None) -> list[str]:
    """A line of the table: number and title of the stage, its job, how that is, since when, and a note."""
    done = read_marker(marker_path(plan, stage)).get("finished", "")
    why = why_again(plan, stage) if done else None
    done += f", but runs again: {why}" if why else ""
    far = ", ".join(filter(None, (_progress(plan.experiment / phase) for phase in plan.phases(stage))))
    job_id, log = job["job_id"], job["log"]
    is_array = job["name"].startswith("features.")
    label = f"{TITLES[stage]}: array" if is_array else TITLES[stage]
    has_log = bool(log) and any(Path(log).parent.glob(Path(log).name))
    state, elapsed, note = ("begun" if far else "not done"), "", far
    if queued_as:
        state, elapsed = queued_as["state"].lower(), queued_as["elapsed"]
        note = "; ".join(filter(None, [far, queued_as["reason"] if state == "pending" else log]))
    elif done and not is_array:
        state, note = "done", done
    elif is_array and has_log:
        state, note = "ended", log
    elif has_log:
        state, note = "failed or cancelled", "; ".join(filter(None, [far, log]))
    elif job_id:
        state, note = "never started", "an earlier stage did not succeed"
    return [str(stage), label, job_id, state, elapsed, note]


def _progress(phase_dir: Path) -> str:
    """How far a training is, by the last line of its metrics; nothing before the first."""
    try:
        last = json.loads((phase_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return ""
    return f"{'/'.join(phase_dir.parts[-2:])}: epoch {last['epoch']}, step {last['step']}"
