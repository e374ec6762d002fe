#!/usr/bin/env python3
"""Submits the stages of run.sh to Slurm as a chain of batch jobs, and shows how far the chain is.

    utils/slurm.py submit OPTIONS -- ./run.sh [its options and key=value]
    utils/slurm.py status OPTIONS

run.sh calls it for `--launcher slurm` and `--status`. Each job runs one stage by `./run.sh --launcher local`, after the
one before it has succeeded; features are computed by an array of jobs before stage 2 collects them. A job that Slurm
is about to end (time limit, preemption) gets SIGUSR1 a minute before, on which run.sh saves and requeues it.

(The package submitit was considered: it pickles Python functions and waits for their results, and requeues them by a
protocol of its own. These jobs are stages of a shell script, and sbatch is all they need.)
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twopass_kd.config.load import load_config, phases_of_stage
from twopass_kd.config.schema import Config, ConfigError, SlurmJobConfig
from twopass_kd.files.json_model import JsonModel, read_json
from twopass_kd.files.write import write_text_atomically

GPU_STAGES = range(3, 9)
TRAINING_STAGES = range(3, 8)
SECONDS_TO_SAVE = 60  # between Slurm's SIGUSR1 and the end of a job


class SlurmError(ValueError):
    """What Slurm answered, and what to do."""


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


def resources(cfg: Config, stage: int, world_size: int, nnodes: int) -> list[str]:
    """The options of sbatch that say what a stage needs."""
    job: SlurmJobConfig = cfg.slurm.gpu if stage in GPU_STAGES else cfg.slurm.cpu
    ranks, nodes = (world_size, nnodes) if stage in TRAINING_STAGES else (1, 1)
    options = [
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={job.cpus * ranks}",
        f"--mem={job.mem}",
        f"--time={job.time}",
    ]
    if job.gpus:
        options.append(f"--gres=gpu:{job.gpus * ranks}")
    if job.partition:
        options.append(f"--partition={job.partition}")
    return options + list(job.options)


def sbatch_command(name: str, log: Path, options: Sequence[str], after: str | None) -> list[str]:
    """The command that submits a job, whose script it reads; the first one of a chain is held."""
    dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else ["--hold"]
    return [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{SECONDS_TO_SAVE}",
        *dependency,
        *options,
    ]


def features_script(args: argparse.Namespace, cfg: Config) -> str:
    """What each task of the array runs: every N-th chunk of the features; requeued, it goes on with the next."""
    data_dir = str(args.data_dir)
    command = ["python3", "local/compute_fbank.py", "--conf", str(args.conf), "--data-dir", data_dir]
    command += ["--nj", str(cfg.slurm.cpu.cpus)]
    shard = f'--shard "$SLURM_ARRAY_TASK_ID/{cfg.slurm.feature_jobs}"'
    return (
        ". utils/stages.sh\n. utils/locks.sh\n"
        f"data_dir={shlex.quote(data_dir)}\n"
        'mkdir -p "$data_dir"\n'
        'exec 9<>"$data_dir/.lock"\n'
        'lock 9 --shared "$data_dir" --data-dir\n'
        "trap 'kill %1; scontrol requeue \"$SLURM_JOB_ID\"' USR1\n"
        f"{shlex.join(command)} {shard} {shlex.join(args.overrides)} &\n"
        "wait $!\n"
    )


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


def chain_path(experiment: Path) -> Path:
    """Where the jobs that were submitted last are listed."""
    return experiment / ".stages" / "slurm.json"


def read_chain(experiment: Path) -> list[dict[str, Any]]:
    """The jobs that were submitted last: name, stage, job_id, log (of an array with %a)."""
    path = chain_path(experiment)
    if not path.is_file():
        return []
    jobs = read_json(path, list[SubmittedJob], "remove it; `squeue` shows the jobs", SlurmError)
    return [job.model_dump() for job in jobs]


def queued(job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """State, elapsed time and reason of those jobs that Slurm still has, by id."""
    wanted, found = set(job_ids), {}
    for line in call("squeue", "--noheader", "--all", "--format=%F|%T|%M|%r").splitlines():
        job_id, state, elapsed, reason = line.split("|", 3)
        if job_id in wanted and found.get(job_id, {}).get("state") != "RUNNING":  # of an array, tasks that run
            found[job_id] = {"state": state, "elapsed": elapsed, "reason": reason}
    return found


def plan_jobs(args: argparse.Namespace, cfg: Config) -> Iterator[dict[str, Any]]:
    """The jobs of the chain: name, stage, log (with sbatch's %j or %A_%a), options of sbatch, script."""
    log_dir = args.experiment.resolve() / "log"
    for stage in range(args.stage, args.stop_stage + 1):
        if 3 <= stage <= 7 and not phases_of_stage(cfg, stage):  # the teacher's, where it is an external one
            continue
        needs = resources(cfg, stage, args.world_size, args.nnodes)
        if stage == 2 and cfg.slurm.feature_jobs > 1:
            yield {
                "name": f"features.{cfg.name}",
                "stage": 2,
                "log": log_dir / "slurm-features-%A_%a.out",
                "options": [*needs, f"--array=0-{cfg.slurm.feature_jobs - 1}"],
                "script": features_script(args, cfg),
            }
        command = [*args.command, "--launcher", "local", "--stage", str(stage), "--stop-stage", str(stage)]
        yield {
            "name": f"s{stage}.{cfg.name}",
            "stage": stage,
            "log": log_dir / f"slurm-stage-{stage}-%j.out",
            "options": needs,
            "script": f"exec {shlex.join(command)}\n",
        }


def submit(args: argparse.Namespace) -> int:
    """Submit the chain. Held until the whole of it is there, so that a failure in the middle leaves nothing behind."""
    cfg = load_config(args.conf, args.overrides)
    jobs: list[dict[str, Any]] = []
    show_status = shlex.join([args.command[0], "--status", *args.command[1:]])
    if args.dry_run:
        for job in plan_jobs(args, cfg):
            command = sbatch_command(job["name"], job["log"], job["options"], "PREVIOUS_JOB" if jobs else None)
            print(f"{shlex.join(command)} <<'END'\n{script_of(job)}END")
            jobs.append(job)
        return 0
    before = read_chain(args.experiment)
    in_queue = queued([job["job_id"] for job in before])
    if in_queue:
        ids = " ".join(job["job_id"] for job in before if job["job_id"] in in_queue)
        raise SlurmError(
            f"{args.experiment} has jobs in the queue already; see them by `{show_status}`, or cancel them:"
            f" scancel {ids}"
        )
    args.experiment.joinpath("log").mkdir(parents=True, exist_ok=True)
    try:
        for job in plan_jobs(args, cfg):
            command = sbatch_command(job["name"], job["log"], job["options"], jobs[-1]["job_id"] if jobs else None)
            try:
                job_id = call(*command, script=script_of(job)).split(";")[0]
            except SlurmError as e:
                kind = "gpu" if job["stage"] in GPU_STAGES else "cpu"
                asks = f"stage {job['stage']}, which asks for what `slurm.{kind}` says"
                raise SlurmError(f"{asks}, was refused: {e}") from e
            log = str(job["log"]).replace("%j", job_id).replace("%A", job_id)
            jobs.append({"name": job["name"], "stage": job["stage"], "job_id": job_id, "log": log})
    except SlurmError as e:
        for job in jobs:
            call("scancel", job["job_id"])
        raise SlurmError(f"{e}. Nothing stays in the queue") from e
    args.experiment.joinpath(".stages").mkdir(exist_ok=True)
    write_text_atomically(chain_path(args.experiment), json.dumps(jobs, indent=1) + "\n")
    call("scontrol", "release", jobs[0]["job_id"])
    for job in jobs:
        print(f"submitted {job['name']} as job {job['job_id']}; its log will be {job['log'].replace('%a', '*')}")
    print(f"see how far it is: {show_status}")
    return 0


def script_of(job: dict[str, Any]) -> str:
    return f"#!/usr/bin/env bash\ncd {shlex.quote(str(Path.cwd()))} || exit 1\n{job['script']}"


def progress(phase_dir: Path) -> str:
    """How far a training is, by the last line of its metrics; nothing before the first."""
    try:
        last = json.loads((phase_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return ""
    return f"{'/'.join(phase_dir.parts[-2:])}: epoch {last['epoch']}, step {last['step']}"


def status(args: argparse.Namespace) -> int:
    """Print the state of every stage: what its marker says, how far it is, and its job."""
    chain = read_chain(args.experiment)
    try:
        states = queued([job["job_id"] for job in chain]) if chain else {}
    except SlurmError as e:
        print(f"Slurm cannot be asked, so that jobs in its queue are not shown: {e}", file=sys.stderr)
        states = {}
    jobs: dict[int, list[dict[str, Any]]] = {}
    for job in chain:
        jobs.setdefault(job["stage"], []).append(job)
    rows = [["stage", "", "job", "state", "time", ""]]
    for line in args.stages:
        number, title, done, phases = line.split("\t")
        far = ", ".join(filter(None, (progress(args.experiment / phase) for phase in phases.split())))
        for job in jobs.get(int(number), [{"name": "", "job_id": "", "log": ""}]):
            found, job_id, log = states.get(job["job_id"]), job["job_id"], job["log"].replace("%a", "*")
            is_array = job["name"].startswith("features.")
            label = f"{title}: array" if is_array else title
            has_log = bool(log) and any(Path(log).parent.glob(Path(log).name))
            if found:
                waits = found["state"] == "PENDING"
                note = "; ".join(filter(None, [far, found["reason"] if waits else log]))
                rows.append([number, label, job_id, found["state"].lower(), found["elapsed"], note])
            elif done and not is_array:
                rows.append([number, label, job_id, "done", "", done])
            elif is_array and has_log:
                rows.append([number, label, job_id, "ended", "", log])
            elif has_log:
                rows.append([number, label, job_id, "failed or cancelled", "", "; ".join(filter(None, [far, log]))])
            elif job_id:
                rows.append([number, label, job_id, "never started", "", "an earlier stage did not succeed"])
            else:
                rows.append([number, label, "", "begun" if far else "not done", "", far])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths)] + row[-1:]).rstrip())
    print(f"the stages' own logs: {args.experiment}/log/stage-*.log; the same ./run.sh command goes on where it ended")
    return 0


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("submit", "status"):
        sub = commands.add_parser(name)
        sub.add_argument("--experiment", type=Path, required=True, help="folder of the experiment, e.g. exp/mini")
    sub.add_argument("--stages", nargs="+", required=True, help="number, title, when done, phases; by TAB")
    sub = commands.choices["submit"]
    sub.add_argument("--conf", type=Path, required=True, help="YAML of the experiment")
    sub.add_argument("--data-dir", type=Path, required=True, help="manifests and features")
    sub.add_argument("--stage", type=int, required=True, help="first stage")
    sub.add_argument("--stop-stage", type=int, required=True, help="last stage")
    sub.add_argument("--world-size", type=int, default=1, help="ranks on each node of a training (default: 1)")
    sub.add_argument("--nnodes", type=int, default=1, help="nodes of a training (default: 1)")
    sub.add_argument("--dry-run", action="store_true", help="print the commands and scripts")
    sub.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="that replace settings of --conf")
    sub.add_argument("command", nargs="+", help="./run.sh with the options that every stage gets, after --")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        return submit(args) if args.what == "submit" else status(args)
    except (ConfigError, SlurmError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
