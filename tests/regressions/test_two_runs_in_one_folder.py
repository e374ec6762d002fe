"""Two run.sh at work in one folder wrote over each other's files."""

import fcntl
import importlib
import subprocess
from contextlib import contextmanager

import pytest

from run_sh import RECIPE, TINY, environment, error, ok
from twopass_kd.config.load import load_config


@contextmanager
def locked(folder, mode=fcntl.LOCK_EX):
    """As another run.sh holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as f:
        fcntl.flock(f, mode)
        yield


def lock_folders(root, *stages, **env):
    """What lock_folders of utils/locks.sh does in a run of `stages`."""
    shell = (
        "set -eu; . utils/stages.sh; . utils/locks.sh; experiment=$1 data_dir=$2; shift 2\n"
        'for n; do lock_folders "$n"; done'
    )
    return subprocess.run(
        ["/bin/bash", "-c", shell, "bash", root / "my e", root / "my d", *map(str, stages)],
        cwd=RECIPE, env={**environment(), **env}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("busy", ["e/tiny", "d"])
def test_run_sh_says_who_works_there_and_does_nothing(tmp_path, busy):
    args = ["--conf", TINY, "--stop-stage", 0, "--exp-dir", tmp_path / "e", "--data-dir", tmp_path / "d",
            "--corpus-dir", tmp_path / "c"]  # fmt: skip
    with locked(tmp_path / busy):
        assert f"error: another run.sh works on {tmp_path / busy}; wait for it" in error(*args)
        assert not (tmp_path / "c").exists()
        if busy == "d":
            assert "local/synthesize_corpus.py" in ok("--dry-run", *args)


def test_lock_folders_two_experiments_train_on_the_same_data(tmp_path):
    assert lock_folders(tmp_path, 2, 3, 9).returncode == 0
    with locked(tmp_path / "my d", fcntl.LOCK_SH):
        assert lock_folders(tmp_path, 3).returncode == 0
        done = lock_folders(tmp_path, 2)
        assert done.returncode == 1 and f"another run.sh works on {tmp_path}/my d" in done.stderr
    with locked(tmp_path / "my d"):
        assert lock_folders(tmp_path, 3).returncode == 1


def test_lock_folders_names_a_folder_that_cannot_be_written_to(tmp_path):
    for name, option in (("my e", "--exp-dir"), ("my d", "--data-dir")):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").symlink_to("/dev/full")
        done = lock_folders(tmp_path, 0)
        said = f"error: `{option}`: {tmp_path}/{name} must be a folder that can be written to"
        assert done.returncode == 1 and done.stderr.startswith(said), done.stderr
        assert "(No space left on device)" in done.stderr and done.stderr.count("\n") == 1
        (tmp_path / name / ".lock").unlink()
    (tmp_path / "my e").rename(tmp_path / "other")
    (tmp_path / "my e").touch()
    assert "(File exists)" in lock_folders(tmp_path, 0).stderr


def test_lock_folders_leaves_icefalls_data_alone(tmp_path):
    (tmp_path / "my d").mkdir()
    assert lock_folders(tmp_path, 3).returncode == 0
    assert not list((tmp_path / "my d").iterdir()) and (tmp_path / "my e" / ".lock").exists()


def test_lock_folders_without_flock_says_so_once_and_goes_on(tmp_path):
    done = lock_folders(tmp_path, 0, 1, 3, PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("flock is not installed: ") and done.stdout.count("\n") == 1


def test_lock_folders_where_the_file_system_cannot_says_so_and_goes_on(tmp_path):
    (tmp_path / "flock").write_text("#!/bin/sh\nexit 71\n")  # util-linux: an error of the operating system
    (tmp_path / "flock").chmod(0o755)
    done = lock_folders(tmp_path, 3, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0 and "my e cannot be locked" in done.stdout


def waits(shell, folder, **env):
    """What `shell` prints while the lock of `folder` is held, and its status and output after that."""
    with locked(folder):
        process = subprocess.Popen(
            ["bash", "-c", f"set -eu; {shell}"], cwd=RECIPE, env={**environment(), **env}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        said = process.stdout.readline()
    rest = process.communicate(timeout=60)[0]
    return said, process.returncode, rest


def test_lock_folders_in_a_batch_job_waits_and_says_for_whom(tmp_path):
    shell = f". utils/stages.sh; . utils/locks.sh; experiment={tmp_path}/e data_dir={tmp_path}/d; lock_folders 9"
    assert waits(shell, tmp_path / "e", SLURM_JOB_ID="7", ENVIRONMENT="BATCH") == (
        f"another run.sh works on {tmp_path}/e; this job waits for it (scancel 7 stops it)\n", 0, "",
    )  # fmt: skip


def test_lock_folders_in_a_shell_of_salloc_is_refused_and_names_who_is_there(tmp_path):
    with locked(tmp_path / "my e"):
        (tmp_path / "my e" / ".lock").write_text("process 12 on host9 since 2026-11-26 20:00:00\n")
        done = lock_folders(tmp_path, 3, SLURM_JOB_ID="7")
    assert done.returncode == 1
    assert f"works on {tmp_path}/my e (process 12 on host9 since 2026-11-26 20:00:00); wait for it" in done.stderr
    assert lock_folders(tmp_path, 3).returncode == 0
    assert "process " in (tmp_path / "my e" / ".lock").read_text()
    assert lock_folders(tmp_path, 2).returncode == 0  # which leaves its name in the data's
    with locked(tmp_path / "my d", fcntl.LOCK_SH):
        assert f"works on {tmp_path}/my d (only reads it); wait" in lock_folders(tmp_path, 2).stderr


def test_array_of_features_says_whom_it_waits_for(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE / "utils"))
    slurm = importlib.import_module("slurm")
    args = slurm.argparse.Namespace(data_dir=tmp_path / "d", conf=TINY, overrides=["corpus.test_parts=[x]"])
    script = slurm.features_script(args, load_config(TINY))
    env = {"SLURM_JOB_ID": "7", "ENVIRONMENT": "BATCH", "SLURM_ARRAY_TASK_ID": "0", "PYTHONPATH": str(RECIPE)}
    said, status, rest = waits(script, tmp_path / "d", **env)
    assert said == f"another run.sh works on {tmp_path}/d; this job waits for it (scancel 7 stops it)\n"
    assert status == 1 and "error: `--data-dir`" in rest  # there are no manifests
