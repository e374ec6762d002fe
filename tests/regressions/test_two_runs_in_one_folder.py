"""Two run.sh at work in one folder wrote over each other's files."""

import errno
import fcntl
import subprocess
import sys
from argparse import Namespace
from contextlib import contextmanager

import pytest

from run_sh import RECIPE, TINY, environment, error, ok
from twopass_kd.config.load import load_config
from twopass_kd.stages.locks import Locks
from twopass_kd.stages.plan import Plan
from twopass_kd.stages.slurm import features_script


@contextmanager
def locked(folder, mode=fcntl.LOCK_EX):
    """As another run.sh holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as f:
        fcntl.flock(f, mode)
        yield


TAKE = """
import sys
from pathlib import Path
from twopass_kd.stages.locks import LockError, Locks

locks = Locks(Path(sys.argv[2]))
try:
    for stage in sys.argv[3:]:
        locks.take(Path(sys.argv[1]), int(stage))
except LockError as e:
    sys.exit(f"error: {e}")
"""


def in_python(*args, **env):
    """A process that takes the locks of `TAKE`."""
    env = {**environment(), "PYTHONPATH": str(RECIPE), **env}
    return {"args": [sys.executable, "-c", TAKE, *map(str, args)], "env": env, "text": True}


def lock_folders(root, *stages, **env):
    """What a run of `stages` does."""
    return subprocess.run(**in_python(root / "my e", root / "my d", *stages, **env), capture_output=True)


@pytest.mark.parametrize("busy", ["e/tiny", "d"])
def test_run_sh_says_who_works_there_and_does_nothing(tmp_path, busy):
    args = ["--conf", TINY, "--stop-stage", 0, "--exp-dir", tmp_path / "e", "--data-dir", tmp_path / "d",
            "--corpus-dir", tmp_path / "c"]  # fmt: skip
    with locked(tmp_path / busy):
        assert f"error: another run.sh works on {tmp_path / busy}; wait for it" in error(*args)
        assert not (tmp_path / "c").exists()
        if busy == "d":
            assert "local/get_corpus.py" in ok("--dry-run", *args)


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


def test_lock_folders_where_the_file_system_cannot_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    Locks(tmp_path / "d").take(tmp_path / "e", 3)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/e cannot be locked: see to it")


def waits(folder, args, env, text):
    """What a process prints while the lock of `folder` is held, and its status and output after that."""
    with locked(folder):
        process = subprocess.Popen(
            args, cwd=RECIPE, env=env, text=text, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        said = process.stdout.readline()
    rest = process.communicate(timeout=60)[0]
    return said, process.returncode, rest


def test_lock_folders_in_a_batch_job_waits_and_says_for_whom(tmp_path):
    process = in_python(tmp_path / "e", tmp_path / "d", 9, SLURM_JOB_ID="7", ENVIRONMENT="BATCH")
    assert waits(tmp_path / "e", **process) == (
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


def test_array_of_features_says_whom_it_waits_for(tmp_path):
    plan = Plan(load_config(TINY), True, None, tmp_path / "d", tmp_path / "e")
    script = features_script(plan, Namespace(conf=str(TINY), overrides=["corpus.test_parts=[x]"]))
    env = {"SLURM_JOB_ID": "7", "ENVIRONMENT": "BATCH", "SLURM_ARRAY_TASK_ID": "0", "PYTHONPATH": str(RECIPE)}
    said, status, rest = waits(tmp_path / "d", ["bash", "-c", f"set -eu; {script}"], {**environment(), **env}, True)
    assert said == f"another run.sh works on {tmp_path}/d; this job waits for it (scancel 7 stops it)\n"
    assert status == 1 and "error: `--data-dir`" in rest  # there are no manifests
