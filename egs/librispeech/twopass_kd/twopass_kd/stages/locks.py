"""Which run.sh works in a folder: two would write over each other's files.

    python3 -m twopass_kd.stages.locks DATA_DIR COMMAND...

runs a command that shares the data folder with others, e.g. a task of the array that computes features.
"""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path


class LockError(ValueError):
    """Who works there, or why nobody can, and what to do."""


class Locks:
    """Of the folders of experiments and their data, held until this process ends.

    The commands of the stages inherit them (`descriptors`), so that after a kill of run.sh alone nobody starts before
    they have stopped.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._experiment_locks: dict[Path, int] = {}
        self._data_lock: int | None = None

    @property
    def descriptors(self) -> list[int]:
        return [lock for lock in (*self._experiment_locks.values(), self._data_lock) if lock is not None]

    def take(self, experiment: Path, stage: int) -> None:
        """Keep others out of an experiment's folder and, where `stage` writes there, the data's; later stages share
        the data with other experiments.

        Raises:
          LockError: another one works there, or the folder cannot be written to.
        """
        if experiment not in self._experiment_locks:
            self._experiment_locks[experiment] = open_lock(experiment, "--exp-dir")
            lock(self._experiment_locks[experiment], fcntl.LOCK_EX, experiment, "--exp-dir")
        if stage <= 2:
            if self._data_lock is None:
                self._data_lock = open_lock(self.data_dir, "--data-dir")
                lock(self._data_lock, fcntl.LOCK_EX, self.data_dir, "--data-dir")
        elif (self.data_dir / ".lock").is_file():  # not in icefall's data, which no run.sh of ours writes
            if self._data_lock is None:
                self._data_lock = os.open(self.data_dir / ".lock", os.O_RDONLY)
            lock(self._data_lock, fcntl.LOCK_SH, self.data_dir, "--data-dir")


def open_lock(folder: Path, option: str) -> int:
    """The file descriptor of a folder's lock; the folder is made, and a line written to see that there is room.

    Raises:
      LockError: it cannot be written to; `option` chooses another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(descriptor, b"\n")
    except OSError as e:
        raise LockError(
            f"`{option}`: {folder} must be a folder that can be written to, with room left ({e.strerror}); mend that,"
            " or choose another"
        ) from e
    return descriptor


def lock(descriptor: int, mode: int, folder: Path, option: str) -> None:
    """Lock it by flock(2): what holds it is refused or, in a batch job, which has time, waited for.

    Args:
      mode: fcntl.LOCK_EX or LOCK_SH.
    """
    if not _locked(lambda: fcntl.flock(descriptor, mode | fcntl.LOCK_NB), folder):
        who = _who_locks(descriptor, folder)
        holder = f"another run.sh works on {folder}{f' ({who})' if who else ''}"
        if not is_batch_job():
            raise LockError(f"{holder}; wait for it, or choose another {option}")
        print(f"{holder}; this job waits for it (scancel {os.environ['SLURM_JOB_ID']} stops it)", flush=True)
        _locked(lambda: fcntl.flock(descriptor, mode), folder)
    if mode == fcntl.LOCK_EX:
        now = time.strftime("%F %T")
        (folder / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")


def _locked(attempt: Callable[[], None], folder: Path) -> bool:
    """False where another one holds the lock; True with a warning where the file system has none."""
    try:
        attempt()
    except BlockingIOError:
        return False
    except OSError:
        print(f"{folder} cannot be locked: see to it that no other run.sh works on it meanwhile", flush=True)
    return True


def _who_locks(descriptor: int, folder: Path) -> str:
    """What the one that has the folder to itself has written about itself."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return (folder / ".lock").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return "only reads it"  # and may be several


def is_batch_job() -> bool:
    """Whether sbatch runs this: a shell of salloc or srun has SLURM_JOB_ID too, and somebody waits at it."""
    in_batch = "SLURM_JOB_ID" in os.environ and os.environ.get("ENVIRONMENT") == "BATCH"
    return in_batch and not (sys.stdin and sys.stdin.isatty())


def main() -> None:
    data_dir, *command = sys.argv[1:]
    try:
        descriptor = open_lock(Path(data_dir), "--data-dir")
        lock(descriptor, fcntl.LOCK_SH, Path(data_dir), "--data-dir")
    except LockError as e:
        sys.exit(f"error: {e}")
    os.set_inheritable(descriptor, True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
