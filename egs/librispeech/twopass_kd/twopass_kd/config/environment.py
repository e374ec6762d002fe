"""Logging, and what every log should say about where it was made."""

import logging
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

_PACKAGES = ("torch", "k2", "fast_rnnt", "lhotse", "kaldifeat", "sentencepiece", "kaldialign", "numpy", "onnxruntime",
             "sherpa-onnx")  # fmt: skip
FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _BesideBars(logging.StreamHandler):
    """Writes messages to stderr on lines of their own, progress bars or not."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def setup_logging() -> None:
    """Log to stderr."""
    logging.basicConfig(level=logging.INFO, format=FORMAT, handlers=[_BesideBars()], force=True)


def log_to_file(path: Path) -> None:
    """Append the log to `path` as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.getLogger().addHandler(handler)


def describe_environment() -> dict[str, Any]:
    """Versions, machine and commit, for logs and results."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "python": platform.python_version(),
        **packages,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(terse=True),
        "git_commit": _git_commit(),
    }


def command_line() -> str:
    """How this program was called, as one would type it."""
    program = Path(sys.argv[0])
    if program.parent == Path(__file__).resolve().parents[1] / "bin":
        return shlex.join(["python3", "-m", f"twopass_kd.bin.{program.stem}", *sys.argv[1:]])
    return shlex.join(sys.argv)


def log_environment() -> None:
    logging.info("command: %s", command_line())
    logging.info("environment: %s, OMP_NUM_THREADS=%s", describe_environment(), os.environ.get("OMP_NUM_THREADS"))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout this file lies in, marked where tracked files were changed."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    name = commit.stdout.strip()
    return f"{name} with local changes" if name and changes.stdout.strip() else name or None
