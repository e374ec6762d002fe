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
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from twopass_kd.config import Config, ConfigError, SlurmJobConfig, load_config
from twopass_kd.files import write_text_atomically

GPU_STAGES = range(3, 9)
TRAINING_STAGES = range(3, 8)
SECONDS_TO_SAVE = 60  # between Slurm's SIGUSR1 and the end of a job


class SlurmError(ValueError):
    """What Slurm answered, and what to do."""


def call(*command: str, script: Optional[str] = None) -> str:
    """What a command of Slurm prints.

    Raises:
      SlurmError: it is not there or fails.
    """
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise SlurmError(f"`{command[0]}` must be on PATH for Slurm's jobs; call this on a node of the cluster") from e
    if done.returncode:
        raise SlurmError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def resources(cfg: Config, stage: int, world_size: int, nnodes: int) -> List[str]:
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


def submit_job(name: str, script: str, log: Path, options: Sequence[str], after: Optional[str], held: bool) -> str:
    """Submit one batch job; returns its id."""
    dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    return call(
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{SECONDS_TO_SAVE}",
        *(["--hold"] if held else []),
        *dependency,
        *options,
        script=f"#!/usr/bin/env bash\ncd {shlex.quote(str(Path.cwd()))} || exit 1\n{script}",
    ).split(";")[0]


def features_script(args: argparse.Namespace, cfg: Config) -> str:
    """What each task of the array runs: every N-th chunk of the features; requeued, it goes on with the next."""
    command = ["python3", "local/compute_fbank.py", "--conf", str(args.conf), "--data-dir", str(args.data_dir)]
    command += ["--nj", str(cfg.slurm.cpu.cpus)]
    shard = f'--shard "$SLURM_ARRAY_TASK_ID/{cfg.slurm.feature_jobs}"'
    return (
        "trap 'kill %1; scontrol requeue \"$SLURM_JOB_ID\"' USR1\n"
        f"{shlex.join(command)} {shard} {shlex.join(args.overrides)} &\n"
        "wait $!\n"
    )


def chain_path(experiment: Path) -> Path:
    """Where the jobs that were submitted last are listed."""
    return experiment / ".stages" / "slurm.json"


def read_chain(experiment: Path) -> List[Dict[str, Any]]:
    """The jobs that were submitted last: name, stage, job_id, log."""
    path = chain_path(experiment)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def queued(job_ids: Sequence[str]) -> Dict[str, Dict[str, str]]:
    """State, elapsed time and reason of those jobs that Slurm still has, by id."""
    wanted, found = set(job_ids), {}
    for line in call("squeue", "--noheader", "--all", "--format=%F|%T|%M|%r").splitlines():
        job_id, state, elapsed, reason = line.split("|", 3)
        if job_id in wanted and found.get(job_id, {}).get("state") != "RUNNING":  # of an array, tasks that run
            found[job_id] = {"state": state, "elapsed": elapsed, "reason": reason}
    return found


def submit(args: argparse.Namespace) -> int:
    """Submit the chain. Held until the whole of it is there, so that a failure in the middle leaves nothing behind."""
    cfg = load_config(args.conf, args.overrides)
    before = read_chain(args.experiment)
    in_queue = queued([job["job_id"] for job in before])
    if in_queue:
        ids = " ".join(job["job_id"] for job in before if job["job_id"] in in_queue)
        raise SlurmError(
            f"{args.experiment} has jobs in the queue already; see them by `./run.sh --status`, or cancel them:"
            f" scancel {ids}"
        )
    log_dir = args.experiment / "log"
    log_dir.mkdir(parents=True, exist_ok=True)
    run_sh = [*args.command, "--launcher", "local"]
    jobs: List[Dict[str, Any]] = []

    def add(stage: int, name: str, script: str, suffix: str, *options: str) -> None:
        log = log_dir.resolve() / f"slurm-{name}-{suffix}.out"
        needs = resources(cfg, stage, args.world_size, args.nnodes)
        after = jobs[-1]["job_id"] if jobs else None
        job_id = submit_job(f"{cfg.name}.{name}", script, log, [*needs, *options], after, held=not jobs)
        log = Path(str(log).replace("%j", job_id).replace("%A", job_id))
        jobs.append({"name": name, "stage": stage, "job_id": job_id, "log": str(log)})

    try:
        for stage in range(args.stage, args.stop_stage + 1):
            if stage == 2 and cfg.slurm.feature_jobs > 1:
                add(2, "features", features_script(args, cfg), "%A_%a", f"--array=0-{cfg.slurm.feature_jobs - 1}")
            command = [*run_sh, "--stage", str(stage), "--stop-stage", str(stage)]
            add(stage, f"stage-{stage}", f"exec {shlex.join(command)}\n", "%j")
    except SlurmError:
        for job in jobs:
            call("scancel", job["job_id"])
        raise
    args.experiment.joinpath(".stages").mkdir(exist_ok=True)
    write_text_atomically(chain_path(args.experiment), json.dumps(jobs, indent=1) + "\n")
    call("scontrol", "release", jobs[0]["job_id"])
    for job in jobs:
        print(f"submitted {job['name']} as job {job['job_id']}; its log will be {job['log']}")
    print(f"the chain: {shlex.join([args.command[0], '--status', *args.command[1:]])}")
    return 0


def status(args: argparse.Namespace) -> int:
    """Print the state of every stage: what its marker says, and the job that runs it or was to run it."""
    chain = read_chain(args.experiment)
    states = queued([job["job_id"] for job in chain]) if chain else {}
    jobs: Dict[int, List[Dict[str, Any]]] = {}
    for job in chain:
        jobs.setdefault(job["stage"], []).append(job)
    rows = [["stage", "", "job", "state", "time", "log or reason"]]
    lost = False
    for line in args.stages:
        number, title, done = line.split("\t")
        stage = int(number)
        for job in jobs.get(stage, [{"name": "", "job_id": "", "log": ""}]):
            found = states.get(job["job_id"])
            label = title if job["name"] != "features" else f"{title}: array"
            if found:
                waiting = found["state"] == "PENDING"
                where = found["reason"] if waiting else job["log"]
                rows.append([number, label, job["job_id"], found["state"].lower(), found["elapsed"], where])
            elif done:
                rows.append([number, label, job["job_id"], "done", done, ""])
            elif not job["job_id"]:
                rows.append([number, label, "", "not done", "", ""])
            elif job["name"] == "features" and any(Path(p).exists() for p in _array_logs(job["log"])):
                rows.append([number, label, job["job_id"], "ended", "", job["log"]])
            elif Path(job["log"]).is_file():
                lost = True
                rows.append([number, label, job["job_id"], "failed or cancelled", "", job["log"]])
            else:
                rows.append([number, label, job["job_id"], "never started", "", "an earlier stage did not succeed"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths)] + row[-1:]).rstrip())
    if lost:
        print(f"the stages' own logs are in {args.experiment}/log; the same ./run.sh command goes on where it ended")
    return 0


def _array_logs(log: str) -> List[str]:
    path = Path(log)
    return [str(p) for p in path.parent.glob(path.name.replace("%a", "*"))]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("submit", "status"):
        sub = commands.add_parser(name)
        sub.add_argument("--experiment", type=Path, required=True, help="folder of the experiment, e.g. exp/mini")
    sub.add_argument("--stages", nargs="+", required=True, help="number TAB title TAB time it was done, of each stage")
    sub = commands.choices["submit"]
    sub.add_argument("--conf", type=Path, required=True, help="YAML of the experiment")
    sub.add_argument("--data-dir", type=Path, required=True, help="manifests and features")
    sub.add_argument("--stage", type=int, required=True, help="first stage")
    sub.add_argument("--stop-stage", type=int, required=True, help="last stage")
    sub.add_argument("--world-size", type=int, default=1, help="ranks on each node of a training (default: 1)")
    sub.add_argument("--nnodes", type=int, default=1, help="nodes of a training (default: 1)")
    sub.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="that replace settings of --conf")
    sub.add_argument("command", nargs="+", help="./run.sh with the options that every stage gets, after --")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        return submit(args) if args.what == "submit" else status(args)
    except (ConfigError, SlurmError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
