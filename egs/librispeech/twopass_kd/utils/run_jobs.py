#!/usr/bin/env python3
"""Runs the commands of a stage side by side on this machine, with one log file and one progress line.

    utils/run_jobs.py --log LOG [--max-jobs N] [--threads N] -- NAME COMMAND... [:: NAME COMMAND...]...

- The output of every command goes to LOG, its lines prefixed by the job's name where there are several; of a
  progress bar only the last state is kept there. On a terminal the newest progress is shown as one line; commands
  then write to a terminal too (else they would draw no bar).
- When a command fails, the others are interrupted, and its last lines are shown. Returns its exit status.
- SIGINT (Ctrl-C) and SIGTERM are passed on as one signal to every command; they get the time to save their state.
  Returns 130. A later second signal kills them.
- With --gpus, each command has one GPU to itself (CUDA_VISIBLE_DEVICES), and no more run at a time than there are.
"""

import argparse
import codecs
import fcntl
import math
import os
import re
import selectors
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from collections import deque
from pathlib import Path
from typing import IO, Deque, Dict, List, Optional, Sequence, Tuple

SEPARATOR = "::"
BAR = re.compile(r"(.*\d%\|.*\|.*\[[^]]*\])(.*)")  # a state of a tqdm bar, and what was written behind it
LOG_HEAD = re.compile(r"^[-\d]{10} [:,\d]{8,12} [A-Z]+ ")  # time and level of a log line
WARNING = re.compile(r"^[-\d]{10} [:,\d]{8,12} WARNING ")  # shown at once
SHOWN_ON_FAILURE = 15  # lines
SECONDS_TO_STOP = 60.0  # that the others get after a failure before they are killed
SECONDS_OF_ONE_SIGNAL = 1.0  # Slurm sends to all processes, which also pass it on: several that come together are one
SECONDS_AFTER_EXIT = 1.0  # that output of a command's own children is waited for once it has ended


class Job:
    """One command: its process, the unfinished line of its output, its newest progress and last lines."""

    def __init__(self, name: str, command: List[str], prefix: str, log: IO[str]):
        self.name = name
        self.command = command
        self.stream = -1  # our end of its output
        self.last_lines: Deque[str] = deque(maxlen=SHOWN_ON_FAILURE)
        self.process: Optional[subprocess.Popen] = None
        self.ended_at: Optional[float] = None
        self.gpu: Optional[str] = None  # that it has to itself
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._silent = True
        self._pending = ""
        self._bar = ""
        self._prefix = prefix
        self._log = log

    @property
    def progress(self) -> str:
        """What it is doing: its progress bar, or its last line where it has none."""
        return (self._bar or LOG_HEAD.sub("", self.last_lines[-1] if self.last_lines else "")).strip()

    def start(self, env: Dict[str, str], columns: Optional[int]) -> None:
        """Start the command, writing to a terminal `columns` wide or, where that is None, to a pipe.

        Raises:
          OSError: there is no such command.
        """
        if columns is None:
            self.stream, theirs = os.pipe()
        else:
            self.stream, theirs = os.openpty()
            tty.setraw(theirs)  # newlines as they are
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.set_blocking(self.stream, False)
        try:
            # A session of its own, so that Ctrl-C in the terminal reaches it once, through us.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env=env,
                start_new_session=True,
            )
        except OSError:
            self.close()
            raise
        finally:
            os.close(theirs)

    def read(self) -> bool:
        """Take what it has written; False at the end of its output."""
        try:
            data = os.read(self.stream, 1 << 16)
        except BlockingIOError:
            return True
        except OSError:  # how a terminal says that its other end is closed
            data = b""
        self.feed(data)
        return bool(data)

    def close(self) -> None:
        if self.stream >= 0:
            os.close(self.stream)
            self.stream = -1

    def feed(self, data: bytes) -> None:
        """Take a piece of output: whole lines to the log, the newest state of a bar to `progress`. Empty: the end."""
        self._silent = self._silent and not data
        self._pending += self._decoder.decode(data, final=not data)
        *lines, self._pending = self._pending.split("\n")
        if not data and self._pending:
            lines, self._pending = [self._pending], ""
        for line in lines:
            self._line(line)
        # A bar writes "\r" before or after each state: keep the newest non-empty one only.
        if "\r" in self._pending:
            states = [s for s in self._pending.split("\r") if s.strip()]
            self._pending = ("\r" + states[-1]) if states else ""
            self._bar = _plain(self._pending)

    def _line(self, line: str) -> None:
        states = [s for s in line.split("\r") if s.strip()]
        line = _plain(states[-1]) if states else ""
        bar = BAR.fullmatch(line)
        if bar and bar[2].strip():  # a message behind a bar that goes on
            self._bar, line = bar[1], bar[2]
        elif bar:  # the bar's end
            self._bar = ""
        if line or not states:
            print(self._prefix + line, file=self._log, flush=True)
        if line:
            self.last_lines.append(line)
        if WARNING.match(line):
            clear = "\r\x1b[K" if sys.stderr.isatty() else ""
            print(f"{clear}  {self.name}: {WARNING.sub('', line)}", file=sys.stderr, flush=True)

    def interrupt(self) -> None:
        """Send SIGINT; SIGTERM where it has written nothing yet: it has nothing to save, and is likely in its imports,
        where SciPy's modules lose a KeyboardInterrupt."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if self._silent else signal.SIGINT)

    def kill_group(self) -> None:
        """Kill the command and all that it started."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    @property
    def status(self) -> Optional[int]:
        """Exit status as a shell gives it (128 + N after signal N); None while it runs."""
        code = None if self.process is None else self.process.poll()
        return code if code is None or code >= 0 else 128 - code


def _plain(text: str) -> str:
    """`text` without terminal codes at its ends and without control characters."""
    return "".join(c for c in text.replace("\x1b[A", "") if c.isprintable() or c == "\t").rstrip()


class Runner:
    """Starts jobs, at most `max_jobs` at a time, and sees them through."""

    def __init__(self, jobs: List[Job], max_jobs: int, threads: int, gpus: Sequence[str], log: IO[str]):
        self.waiting = deque(jobs)
        self.running: List[Job] = []
        self.max_jobs = min(max_jobs, len(gpus)) if gpus else max_jobs
        self.gpus = gpus
        self.env = dict(
            os.environ,
            OMP_NUM_THREADS=str(threads),
            MKL_NUM_THREADS=str(threads),
            PYTHONUNBUFFERED="1",
        )
        self.log = log
        self.failed: Optional[Job] = None
        self.signals = 0  # how often we were told to stop
        self._received = {signal.SIGINT: 0, signal.SIGTERM: 0}
        self._received_at = {signal.SIGINT: -math.inf, signal.SIGTERM: -math.inf}
        self._parent = os.getppid()
        self._handled = 0
        self._kill_at: Optional[float] = None
        self._selector = selectors.DefaultSelector()
        self._screen = sys.stderr if sys.stderr.isatty() else None
        self._side_by_side = min(self.max_jobs, len(jobs))
        self._drawn = 0.0

    def run(self) -> int:
        # Also where a shell has started us in the background, with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        while self.running or (self.waiting and not self._stopping):
            while self.waiting and len(self.running) < self.max_jobs and not self._stopping:
                self._start(self.waiting.popleft())
            self._read()
            self._react()
            for job in [j for j in self.running if self._ended(j)]:
                self._finish(job)
            self._draw()
        self._clear()
        if self.signals:
            return 130
        return 0 if self.failed is None else (self.failed.status or 1)

    @property
    def _stopping(self) -> bool:
        return bool(self.signals or self.failed)

    def _on_signal(self, number, frame) -> None:
        # Ctrl-C comes as SIGINT from the terminal and, whenever it gets to it, as SIGTERM from run.sh: that is one.
        now = time.monotonic()
        if now - self._received_at[number] > SECONDS_OF_ONE_SIGNAL:
            self._received[number] += 1
            self._received_at[number] = now
        self.signals = max(self.signals, *self._received.values())

    def _start(self, job: Job) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"# {now} {job.name}: {shlex.join(job.command)}", file=self.log, flush=True)
        env = self.env
        if self.gpus:
            job.gpu = next(gpu for gpu in self.gpus if gpu not in [other.gpu for other in self.running])
            env = {**env, "CUDA_VISIBLE_DEVICES": job.gpu}
        try:
            job.start(env, self._share() if self._screen else None)
        except OSError as e:
            job.feed(f"cannot start: {e}\n".encode())
            self.failed = self.failed or job
            return
        self._selector.register(job.stream, selectors.EVENT_READ, job)
        self.running.append(job)

    def _read(self) -> None:
        for key, _ in self._selector.select(timeout=0.1):
            if not key.data.read():
                self._close(key.data)

    def _ended(self, job: Job) -> bool:
        if job.status is None:
            return False
        if job.stream < 0:
            return True
        # Ended, and a child of its own still holds the pipe.
        job.ended_at = job.ended_at or time.monotonic()
        return time.monotonic() - job.ended_at > SECONDS_AFTER_EXIT

    def _finish(self, job: Job) -> None:
        self.running.remove(job)
        self._close(job)
        job.kill_group()
        if job.status and not self._stopping:
            self.failed = job

    def _close(self, job: Job) -> None:
        if job.stream >= 0:
            self._selector.unregister(job.stream)
            job.close()
            job.feed(b"")

    def _react(self) -> None:
        """Pass signals on, and stop the others where one has failed or where who started us has gone."""
        if os.getppid() != self._parent and not self.signals:
            self.signals = 1
        if self.signals > self._handled:
            for job in self.running:
                job.interrupt() if self._handled == 0 else job.kill_group()
            if self._handled == 0:
                self._clear()
                print("interrupted: waiting for running jobs to save their state (again to kill them)", file=sys.stderr)
            self._handled = self.signals
        if self.failed and self.running and self._kill_at is None and not self.signals:
            self._kill_at = time.monotonic() + SECONDS_TO_STOP
            for job in self.running:
                job.interrupt()
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            for job in self.running:
                job.kill_group()

    def _draw(self) -> None:
        if self._screen is None or time.monotonic() - self._drawn < 0.2:
            return
        self._drawn = time.monotonic()
        shown = []
        for job in self.running:
            named = self._side_by_side == 1 or job.progress.startswith(job.name)
            shown.append((job.progress if named else f"{job.name}: {job.progress}")[: self._share()])
        print(f"\r\x1b[K{' | '.join(shown)}", end="", file=self._screen, flush=True)

    def _share(self) -> int:
        """Columns of the terminal for one of the jobs that run side by side."""
        columns = os.get_terminal_size(self._screen.fileno()).columns or 80
        return max(10, (columns - 1) // self._side_by_side - 3)

    def _clear(self) -> None:
        if self._screen is not None:
            print("\r\x1b[K", end="", file=self._screen, flush=True)


def parse_jobs(words: Sequence[str]) -> List[Tuple[str, List[str]]]:
    """`NAME COMMAND... :: NAME COMMAND...` as a list of (name, command).

    Raises:
      ValueError: a job without a name or a command.
    """
    jobs: List[List[str]] = [[]]
    for word in words:
        if word == SEPARATOR:
            jobs.append([])
        else:
            jobs[-1].append(word)
    for job in jobs:
        if len(job) < 2:
            raise ValueError(f"a job ({shlex.join(job)}) must be NAME COMMAND...; separate jobs by {SEPARATOR}")
    return [(job[0], job[1:]) for job in jobs]


def run_jobs(
    jobs: Sequence[Tuple[str, List[str]]],
    log_path: Path,
    max_jobs: int = 1,
    threads: int = 1,
    gpus: Sequence[str] = (),
) -> int:
    """Run `jobs` (name, command), appending their output to `log_path`; each on one of `gpus`, where there are any.

    Returns:
      0; the exit status of the first that failed, after printing its last lines to stderr; 130 after a signal.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("a", encoding="utf-8") as log:
        made = [Job(name, command, f"{name}: " if len(jobs) > 1 else "", log) for name, command in jobs]
        runner = Runner(made, max_jobs, threads, gpus, log)
        status = runner.run()
    if runner.failed is not None and not runner.signals:
        job = runner.failed
        killed = " (killed: is there enough memory?)" if status == 128 + signal.SIGKILL else ""
        print(f"error: {job.name} failed with exit status {status}{killed}; the end of {log_path}:", file=sys.stderr)
        for line in job.last_lines:
            print(f"  {line}", file=sys.stderr)
    return status


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_jobs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, required=True, help="file that all output is appended to")
    parser.add_argument("--max-jobs", type=int, default=1, help="how many run at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each, as OMP_NUM_THREADS (default: 1)")
    parser.add_argument("--gpus", default="", metavar="ID,ID...", help="GPUs, of which each job gets one")
    parser.add_argument("jobs", nargs="+", metavar="NAME COMMAND...", help=f"jobs, separated by {SEPARATOR}")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        if args.max_jobs < 1 or args.threads < 1:
            raise ValueError(f"`--max-jobs` ({args.max_jobs}) and `--threads` ({args.threads}) must be positive")
        jobs = parse_jobs(args.jobs)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    gpus = [gpu for gpu in args.gpus.split(",") if gpu]
    return run_jobs(jobs, args.log, args.max_jobs, args.threads, gpus)


if __name__ == "__main__":
    sys.exit(main())
