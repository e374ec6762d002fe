"""run.sh --launcher slurm on a real Slurm (see cluster.py): the whole chain, and jobs that are ended."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cluster import Cluster, why_not
from run_sh import RECIPE, TINY, command, environment
from twopass_kd.models.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

SMALL = ["slurm.cpu.cpus=1", "slurm.cpu.mem=900", "slurm.gpu.cpus=1", "slurm.gpu.mem=900", "slurm.gpu.gpus=0",
         "slurm.feature_jobs=2", "phases.teacher/rnnt.cpu_ranks=1"]  # fmt: skip
LONG = ["phases.teacher/rnnt.num_epochs=60", "train.save_every_n=2"]


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    with Cluster(folder) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


class Recipe:
    """run.sh with Slurm's commands on its PATH, for one experiment folder; features are shared."""

    def __init__(self, cluster, root, exp_dir):
        self.cluster = cluster
        self.experiment = exp_dir / "tiny"
        self.options = ["--conf", TINY, "--corpus-dir", root / "LibriSpeech", "--data-dir", root / "data", "--exp-dir",
                        exp_dir]  # fmt: skip

    def run(self, *args):
        env = {**environment(), "SLURM_CONF": self.cluster.environment["SLURM_CONF"]}
        return subprocess.run(
            command(*self.options, *args, *SMALL), env=env, capture_output=True, text=True, timeout=600
        )

    def ok(self, *args):
        done = self.run(*args)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *args):
        """The ids of the jobs: of stage-0, stage-1, features, stage-2, ..."""
        self.ok("--launcher", "slurm", *args)
        jobs = json.loads((self.experiment / ".stages/slurm.json").read_text())
        names = {job["job_id"]: "features" if "features" in job["name"] else f"stage-{job['stage']}" for job in jobs}
        return {name: job_id for job_id, name in names.items()}

    def wait(self, seconds=300):
        """Until no job is in the queue."""
        end = time.monotonic() + seconds
        while jobs := self.cluster.call("squeue", "--noheader"):
            assert time.monotonic() < end, jobs + self.logs()
            time.sleep(0.5)

    def wait_for_checkpoint(self, beyond=0):
        end = time.monotonic() + 120
        while self.newest() <= beyond:
            assert time.monotonic() < end, self.logs()
            time.sleep(0.05)
        return self.newest()

    def newest(self):
        names = [p.stem.split("-")[1] for p in (self.experiment / "teacher/rnnt").glob("checkpoint-*.pt")]
        return max(map(int, names), default=0)

    def logs(self):
        return "".join(f"--- {p}\n{p.read_text()}" for p in sorted((self.experiment / "log").glob("*")))

    def digest(self):
        return load_checkpoint(self.experiment / "teacher/rnnt/final.pt")["weights_digest"]

    def status(self, *args):
        """Lines of --status by their number of stage."""
        return {line.split()[0]: line for line in self.ok("--status", *args).splitlines()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("slurm é")


@pytest.fixture(scope="module")
def finished(cluster, root):
    """The whole pipeline as a chain of jobs."""
    recipe = Recipe(cluster, root, root / "exp")
    jobs = recipe.submit()
    recipe.wait(900)
    return recipe, jobs


@pytest.fixture(scope="module")
def undisturbed(finished, root):
    """The digest of a teacher trained without Slurm and without interruption."""
    recipe = Recipe(finished[0].cluster, root, root / "undisturbed")
    recipe.ok("--stage", 3, "--stop-stage", 3, *LONG)
    return recipe.digest()


def test_slurm_batch_job_is_told_from_a_shell_that_somebody_waits_at(cluster, tmp_path):
    ask = "from twopass_kd.stages.locks import is_batch_job; print('batch' if is_batch_job() else 'no')"
    script = f'#!/usr/bin/env bash\ncd {RECIPE} && {sys.executable} -c "{ask}"\n'
    (tmp_path / "ask.sh").write_text(script)
    cluster.call("sbatch", "--wait", f"--output={tmp_path}/out", tmp_path / "ask.sh")
    assert (tmp_path / "out").read_text() == "batch\n"
    for command_of_slurm in ("salloc", "srun"):
        assert cluster.call(command_of_slurm, "--nodes=1", "bash", tmp_path / "ask.sh") == "no\n"


def test_slurm_runs_the_whole_pipeline_as_a_chain(finished):
    recipe, jobs = finished
    assert list(jobs) == ["stage-0", "stage-1", "features", *(f"stage-{n}" for n in range(2, 11))]
    results = recipe.experiment / "results.json"
    assert results.is_file(), recipe.logs()
    assert [s["stage"] for s in json.loads(results.read_text())["stages"]] == list(range(11))
    table = recipe.status()
    assert all("done" in table[str(n)] and jobs[f"stage-{n}"] in table[str(n)] for n in range(11) if n != 2), table
    array = [p.read_text() for p in (recipe.experiment / "log").glob("slurm-features-*_*.out")]
    assert len(array) == 2 and all("features computed" in log for log in array)


def test_slurm_submits_nothing_where_all_is_done(finished):
    recipe, _ = finished
    output = recipe.ok("--launcher", "slurm")
    assert output.count("done already") == 11 and "submitted" not in output


def test_slurm_refused_job_leaves_nothing_behind_and_says_what_asked(finished, root):
    recipe = Recipe(finished[0].cluster, root, root / "refused")
    done = recipe.run("--launcher", "slurm", "--stage", 2, "--force", "slurm.gpu.partition=none")
    assert done.returncode == 1 and "stage 3, which asks for what `slurm.gpu` says, was refused" in done.stderr
    assert "Nothing stays in the queue" in done.stderr and not recipe.cluster.call("squeue", "--noheader")


def test_slurm_dry_run_prints_the_jobs(finished):
    output = finished[0].ok("--launcher", "slurm", "--stage", 2, "--stop-stage", 3, "--dry-run", "--nnodes", 2)
    assert output.count("sbatch ") == 3 and "--array=0-1" in output and "--nodes=2" in output
    assert not finished[0].cluster.call("squeue", "--noheader")


def test_slurm_cancelled_training_goes_on_when_submitted_again(finished, undisturbed, root):
    recipe = Recipe(finished[0].cluster, root, root / "cancelled")
    args = ["--stage", 3, "--stop-stage", 4, *LONG]
    jobs = recipe.submit(*args)
    recipe.wait_for_checkpoint()
    again = recipe.run("--launcher", "slurm", *args)
    assert again.returncode == 1 and f"scancel {jobs['stage-3']}" in again.stderr, again.stderr
    assert "running" in recipe.status(*args)["3"] and "dependency" in recipe.status(*args)["4"].lower()
    recipe.cluster.call("scancel", jobs["stage-3"])
    recipe.wait()
    assert "failed or cancelled" in recipe.status(*args)["3"] and "never started" in recipe.status(*args)["4"]
    assert "state saved at step" in recipe.logs()
    recipe.submit(*args)
    recipe.wait()
    assert recipe.digest() == undisturbed and "resuming from" in recipe.logs()
    assert (recipe.experiment / "teacher/las/final.pt").is_file()


def test_slurm_signalled_job_saves_and_is_requeued(finished, undisturbed, root):
    """The signal that Slurm sends before the time limit, sent by hand."""
    recipe = Recipe(finished[0].cluster, root, root / "requeued")
    job = recipe.submit("--stage", 3, "--stop-stage", 3, *LONG)["stage-3"]
    recipe.wait_for_checkpoint()
    recipe.cluster.call("scancel", "--batch", "--signal=USR1", job)
    recipe.wait_for_checkpoint(beyond=recipe.wait_for_checkpoint() + 4)
    assert "Restarts=1 " in recipe.cluster.call("scontrol", "show", "job", job)
    recipe.wait()
    assert "goes on when Slurm runs job" in recipe.logs() and "resuming from" in recipe.logs()
    assert recipe.digest() == undisturbed


def test_slurm_job_at_its_time_limit_goes_on_in_the_next(finished, root):
    """A limit of two minutes, of which Slurm's warning takes one, and a training of more than that."""
    recipe = Recipe(finished[0].cluster, root, root / "limited")
    epochs = 250
    long = [f"phases.teacher/rnnt.num_epochs={epochs}", "slurm.gpu.time=2"]
    job = recipe.submit("--stage", 3, "--stop-stage", 3, *long)["stage-3"]
    recipe.wait(900)
    assert "goes on when Slurm runs job" in recipe.logs() and "resuming from" in recipe.logs(), recipe.logs()
    assert "TIMEOUT" not in recipe.cluster.call("scontrol", "show", "job", job)
    lines = (recipe.experiment / "teacher/rnnt/metrics.jsonl").read_text().splitlines()
    assert [m["epoch"] for m in map(json.loads, lines) if m["split"] == "valid"] == list(range(1, epochs + 1))


def test_slurm_preempted_training_on_two_nodes_saves_and_is_requeued(finished, root):
    recipe = Recipe(finished[0].cluster, root, root / "preempted")
    cluster = recipe.cluster
    job = recipe.submit("--stage", 3, "--stop-stage", 3, "--nnodes", 2, *LONG)["stage-3"]
    recipe.wait_for_checkpoint()
    cluster.call("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    recipe.wait_for_checkpoint(beyond=recipe.wait_for_checkpoint() + 40)
    assert "Restarts=1 " in cluster.call("scontrol", "show", "job", job), recipe.logs()
    recipe.wait()
    assert "state saved at step" in recipe.logs() and "resuming from" in recipe.logs()
    assert (recipe.experiment / "teacher/rnnt/final.pt").is_file()


def test_slurm_failing_stage_stops_the_chain_and_names_its_log(finished, root):
    recipe = Recipe(finished[0].cluster, root, root / "failing")
    args = ["--stage", 3, "--stop-stage", 4, "phases.teacher/rnnt.base_lr=1.0e+30"]
    job = recipe.submit(*args)["stage-3"]
    recipe.wait()
    table = recipe.status(*args)
    assert "failed" in table["3"] and "never started" in table["4"]
    log = recipe.experiment / "log" / f"slurm-stage-3-{job}.out"
    assert str(log) in table["3"] and "not finite" in log.read_text()
    assert not (recipe.experiment / "teacher/las").exists()


def test_slurm_seeds_are_tasks_of_arrays_and_a_missing_one_is_named(finished, root):
    recipe = Recipe(finished[0].cluster, root, root / "seeds")
    args = ["--seeds", 2, "--stage", 3, "--stop-stage", 9, "--baseline", "false"]
    recipe.ok("--launcher", "slurm", *args)
    jobs = {job["stage"]: job["job_id"] for job in json.loads((recipe.experiment / ".stages/slurm.json").read_text())}
    recipe.cluster.call("scancel", f"{jobs[6]}_1")
    recipe.wait(600)
    logs = recipe.logs()
    assert "seed-43 is left out of the report (stage 8 is not done)" in logs, logs
    results = json.loads((recipe.experiment / "seeds.json").read_text())
    assert results["seeds"] == [42] and results["unfinished"] == [43]
    tables = recipe.ok("--status", *args).split("seed-43:\n")
    rows = [{line.split()[0]: line for line in table.splitlines()} for table in tables]
    assert all("done" in rows[0][str(stage)] for stage in range(3, 10)), tables
    assert "done" in rows[1]["5"] and "never started" in rows[1]["7"], tables

    recipe.ok("--launcher", "slurm", *args)
    recipe.wait(600)
    assert json.loads((recipe.experiment / "seeds.json").read_text())["seeds"] == [42, 43], recipe.logs()
    trained = (recipe.experiment / "seed-42/log/stage-6.log").read_text()
    assert trained.count("seed-42/student/las_kd: python3") == 1, "trained again"


def test_slurm_trains_over_two_nodes(finished, root):
    recipe = Recipe(finished[0].cluster, root, root / "nodes")
    recipe.submit("--stage", 3, "--stop-stage", 3, "--nnodes", 2)
    recipe.wait()
    phase = recipe.experiment / "teacher/rnnt"
    assert (phase / "final.pt").is_file() and (phase / "train-rank1.log").is_file(), recipe.logs()
    assert json.loads((phase / "environment.json").read_text())["world_size"] == 2


def test_slurm_several_nodes_without_slurm_are_an_error(finished):
    done = finished[0].run("--nnodes", 2, "--stage", 3)
    assert done.returncode == 1 and "`--nnodes` (2) must be 1 outside of Slurm" in done.stderr
