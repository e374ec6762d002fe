"""Runs run.sh as a user does, with the Python that runs the tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "egs" / "librispeech" / "twopass_kd"
TINY = ROOT / "tests" / "conf" / "tiny.yaml"


def command(*args) -> list[str]:
    return ["bash", str(RECIPE / "run.sh"), *map(str, args)]


def environment() -> dict:
    """This process's, with its Python first on PATH and without what run.sh sets itself."""
    own = ("PYTHONPATH", "ICEFALL_ROOT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    env = {k: v for k, v in os.environ.items() if k not in own}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env


def run(*args, cwd=None, timeout=300, **env) -> subprocess.CompletedProcess:
    """`run.sh args...` to its end; stdout and stderr are text."""
    return subprocess.run(
        command(*args), cwd=cwd, env={**environment(), **env}, capture_output=True, text=True, timeout=timeout
    )


def ok(*args, **kwargs) -> str:
    """What `run.sh args...` prints; an assertion fails where it does not return 0."""
    done = run(*args, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def error(*args, **kwargs) -> str:
    """The error that `run.sh args...` must end with."""
    done = run(*args, **kwargs)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: " in done.stderr
    return done.stderr
