"""Submits the stages to Slurm as a chain of batch jobs, and shows how far the chain is.

Each job runs one stage by `./run.sh --launcher local`, after the one before it has succeeded; features are computed by
an array of jobs before stage 2 collects them. A job that Slurm is about to end (time limit, preemption) gets SIGUSR1 a
minute before, on which run.sh saves and requeues it.

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
from twopass_kd.stages.markers import is_done, marker_path, read_marker
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
    """

    name: str
    stage: int
    log: Path
    options: list[str]
    script: str

    def command(self, after: str | None) -> list[str]:
        """The command that submits it, and reads its script; the first one of a chain is held."""
        dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else ["--hold"]
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


def chain(plan: Plan, args: argparse.Namespace, command: Sequence[str], first: int) -> Iterator[BatchJob]:
    """The jobs of stages `first` to the last one that is asked for; `command` is run.sh with what every stage gets."""
    log_dir = plan.experiment.resolve() / "log"
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
        log = log_dir / f"slurm-stage-{stage}-%j.out"
        yield BatchJob(f"s{stage}.{plan.cfg.name}", stage, log, needs, f"exec {shlex.join(run)}\n")


def submit(plan: Plan, args: argparse.Namespace, command: Sequence[str], run: StageRun) -> None:
    """Submit the stages, without those that have nothing to train and the first ones if they are done; or print them.

    Held until the whole chain is there, so that a failure in the middle leaves nothing behind.
    """
    first = args.stage
    while first <= args.stop_stage:
        if plan.has_nothing_to_do(first):
            print(f"Stage {first}: {plan.why_nothing(first)}")
        elif not args.force and not args.dry_run and is_done(plan, first):
            print(f"Stage {first}: done already")
        else:
            break
        first += 1
    if first > args.stop_stage:
        return
    batch_jobs = list(chain(plan, args, [*command, *args.running], first))
    if args.dry_run:
        for i, job in enumerate(batch_jobs):
            print(f"{shlex.join(job.command('PREVIOUS_JOB' if i else None))} <<'END'\n{job.whole_script()}END")
        return
    run.check_data(first)
    run.check_inputs(first)
    show_status = shlex.join([command[0], "--status", *command[1:], *args.running, *args.overrides])
    before = read_chain(plan)
    in_queue = queued([job["job_id"] for job in before])
    if in_queue:
        ids = " ".join(job["job_id"] for job in before if job["job_id"] in in_queue)
        raise SlurmError(
            f"{plan.experiment} has jobs in the queue already; see them by `{show_status}`, or cancel them:"
            f" scancel {ids}"
        )
    plan.experiment.joinpath("log").mkdir(parents=True, exist_ok=True)
    jobs: list[dict[str, Any]] = []
    try:
        for job in batch_jobs:
            jobs.append(_submit_one(job, jobs[-1]["job_id"] if jobs else None))
    except SlurmError as e:
        for submitted in jobs:
            call("scancel", submitted["job_id"])
        raise SlurmError(f"{e}. Nothing stays in the queue") from e
    write_text_atomically(chain_path(plan), json.dumps(jobs, indent=1) + "\n")
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


def chain_path(plan: Plan) -> Path:
    """Where the jobs that were submitted last are listed."""
    return plan.experiment / ".stages" / "slurm.json"


def read_chain(plan: Plan) -> list[dict[str, Any]]:
    """The jobs that were submitted last: name, stage, job_id, log (of an array with %a)."""
    if not chain_path(plan).is_file():
        return []
    jobs = read_json(chain_path(plan), list[SubmittedJob], "remove it; `squeue` shows the jobs", SlurmError)
    return [job.model_dump() for job in jobs]


def queued(job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """State, elapsed time and reason of those jobs that Slurm still has, by id."""
    wanted, found = set(job_ids), {}
    for line in call("squeue", "--noheader", "--all", "--format=%F|%T|%M|%r").splitlines():
        job_id, state, elapsed, reason = line.split("|", 3)
        if job_id in wanted and found.get(job_id, {}).get("state") != "RUNNING":  # of an array, tasks that run
            found[job_id] = {"state": state, "elapsed": elapsed, "reason": reason}
    return found


def show_status(plan: Plan) -> None:
    """Print the state of every stage: what its marker says, how far it is, and its job."""
    submitted = read_chain(plan)
    try:
        states = queued([job["job_id"] for job in submitted]) if submitted else {}
    except SlurmError as e:
        print(f"Slurm cannot be asked, so that jobs in its queue are not shown: {e}", file=sys.stderr)
        states = {}
    rows = [["stage", "", "job", "state", "time", ""]]
    for stage in range(len(TITLES)):
        if not plan.has_nothing_to_do(stage):
            jobs = [job for job in submitted if job["stage"] == stage] or [{"name": "", "job_id": "", "log": ""}]
            rows += [_row(plan, stage, job, states.get(job["job_id"])) for job in jobs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths)] + row[-1:]).rstrip())
    print(f"the stages' own logs: {plan.experiment}/log/stage-*.log; the same ./run.sh command goes on where it ended")


def _row(plan: Plan, stage: int, job: dict[str, Any], queued_as: dict[str, str] | None) -> list[str]:
    """A line of the table: number and title of the stage, its job, how that is, since when, and a note."""
    done = read_marker(marker_path(plan, stage)).get("finished", "")
    if done and not is_done(plan, stage):
        done += ", with other settings"
    far = ", ".join(filter(None, (_progress(plan.experiment / phase) for phase in plan.phases(stage))))
    job_id, log = job["job_id"], job["log"].replace("%a", "*")
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
