#!/usr/bin/env python3
"""Runs the commands of some stages on this machine, side by side as far as they can, with one progress line.

    utils/run_jobs.py --log LOG [--max-jobs N] -- JOB [:: JOB]...
    JOB: NAME [--after NAME,NAME...] [--cores N] [--threads N] [--log LOG] COMMAND...

- A job starts when those that it comes after have ended, and as many cores as it takes are free; the first ones first.
- The output of every command goes to its LOG, its lines prefixed by the job's name where there are several; of a
  progress bar only the last state is kept there. On a terminal the newest progress is shown as one line; commands
  then write to a terminal too (else they would draw no bar).
- When a command fails, the others are interrupted, and its last lines are shown. Returns its exit status.
- SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is closed; not under nohup) are passed on as one signal to every
  command; they get the time to save their state. Returns 130. A later second signal kills them.
- With --gpus, each command has a GPU for each of its cores to itself (CUDA_VISIBLE_DEVICES), and no more run at a time
  than there are.
"""

import argparse
import codecs
import contextlib
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SEPARATOR = "::"
BAR = re.compile(r"(.*\d%\|.*\|.*\[[^]]*\])(.*)")  # a state of a tqdm bar, and what was written behind it
LOG_HEAD = re.compile(r"^[-\d]{10} [:,\d]{8,12} [A-Z]+ ")  # time and level of a log line
WARNING = re.compile(r"^[-\d]{10} [:,\d]{8,12} WARNING ")  # shown at once
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOWN_ON_FAILURE = 15  # lines
SECONDS_TO_STOP = 60.0  # that the others get after a failure before they are killed
SECONDS_OF_ONE_SIGNAL = 1.0  # Slurm sends to all processes, which also pass it on: several that come together are one
SECONDS_AFTER_EXIT = 1.0  # that output of a command's own children is waited for once it has ended


@dataclass
class Spec:
    """A job as it is asked for.

    Attributes:
      after: names of the jobs that must have ended before it starts.
      cores: how many it takes.
      threads: OMP_NUM_THREADS of its processes.
    """

    name: str
    command: list[str]
    after: list[str]
    cores: int
    threads: int
    log: Path


class Job:
    """One command: its process, the unfinished line of its output, its newest progress and last lines."""

    def __init__(self, spec: Spec, prefix: str, log: IO[str]):
        self.name = spec.name
        self.command = spec.command
        self.after = spec.after
        self.cores = spec.cores
        self.threads = spec.threads
        self.stream = -1  # our end of its output
        self.last_lines: deque[str] = deque(maxlen=SHOWN_ON_FAILURE)
        self.process: subprocess.Popen | None = None
        self.started = 0.0  # seconds since the epoch
        self.ended_at: float | None = None
        self.gpus: list[str] = []  # that it has to itself
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

    def start(self, env: dict[str, str], columns: int | None) -> None:
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
        self.started = time.time()

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
            say(self._prefix + line, self._log)
        if line:
            self.last_lines.append(line)
        if WARNING.match(line):
            clear = "\r\x1b[K" if sys.stderr.isatty() else ""
            say(f"{clear}  {self.name}: {WARNING.sub('', line)}", sys.stderr)

    def interrupt(self) -> None:
        """Send SIGINT; SIGTERM where it has written nothing yet: it has nothing to save, and is likely in its imports,
        where SciPy's modules lose a KeyboardInterrupt."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if self._silent else signal.SIGINT)

    def note(self, text: str) -> None:
        """Write a line of our own to its log."""
        say(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {self.name}: {text}", self._log)

    def kill_group(self) -> None:
        """Kill the command and all that it started."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    @property
    def status(self) -> int | None:
        """Exit status as a shell gives it (128 + N after signal N); None while it runs."""
        code = None if self.process is None else self.process.poll()
        return code if code is None or code >= 0 else 128 - code


def say(text: str, file: IO[str], end: str = "\n") -> None:
    """Print to a terminal or pipe, whose other end may be gone, or a log, whose disk may be full: the jobs go on."""
    try:
        print(text, end=end, file=file, flush=True)
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # else Python fails again when it flushes at its end
        if file not in (sys.stdout, sys.stderr):
            say(f"  {file.name} cannot be written any more ({e.strerror}); is the disk full?", sys.stderr)


def _plain(text: str) -> str:
    """`text` without terminal codes at its ends and without control characters."""
    return "".join(c for c in text.replace("\x1b[A", "") if c.isprintable() or c == "\t").rstrip()


class Runner:
    """Starts jobs, on at most `max_jobs` cores at a time, and sees them through."""

    def __init__(self, jobs: list[Job], max_jobs: int, gpus: Sequence[str], times: Path | None):
        self.waiting = list(jobs)
        self.running: list[Job] = []
        self.max_jobs = min(max_jobs, len(gpus)) if gpus else max_jobs
        self.times = times
        self._names = {job.name for job in jobs}  # of those that have not ended
        self.gpus = gpus
        self.failed: Job | None = None
        self.signals = 0  # how often we were told to stop
        self._received = dict.fromkeys(STOPPING, 0)
        self._received_at = dict.fromkeys(STOPPING, -math.inf)
        self._parent = os.getppid()
        self._handled = 0
        self._kill_at: float | None = None
        self._selector = selectors.DefaultSelector()
        self._screen = sys.stderr if sys.stderr.isatty() else None
        self._several = len(jobs) > 1
        self._side_by_side = min(self.max_jobs, len(jobs))
        self._drawn = 0.0

    def run(self) -> int:
        # Also where a shell has started us in the background, with SIGINT ignored.
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        while self.running or (self.waiting and not self._stopping):
            while (job := self._next()) is not None:
                self.waiting.remove(job)
                self._start(job)
            self._read()
            self._react()
            for job in [j for j in self.running if self._ended(j)]:
                self._finish(job)
            self._draw()
        self._clear()
        if self.signals:
            return 130
        return 0 if self.failed is None else (self.failed.status or 1)

    def _next(self) -> Job | None:
        """The first job that may start now; one that wants more cores than there are gets all of them."""
        free = self.max_jobs - sum(job.cores for job in self.running)
        for job in [] if self._stopping else self.waiting:
            if min(job.cores, self.max_jobs) <= free and self._names.isdisjoint(job.after):
                return job
        return None

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
        job.note(shlex.join(job.command))
        threads = str(job.threads)
        env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        if self.gpus:
            taken = [gpu for other in self.running for gpu in other.gpus]
            job.gpus = [gpu for gpu in self.gpus if gpu not in taken][: job.cores]
            env = {**env, "CUDA_VISIBLE_DEVICES": ",".join(job.gpus)}
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
        if job.status == 0:
            self._succeeded(job)
        elif not self._stopping:
            self.failed = job

    def _succeeded(self, job: Job) -> None:
        self._names.remove(job.name)
        ended = time.time()
        if self._several:
            self._clear()
            say(f"  {job.name}: {ended - job.started:.0f} s", sys.stdout)
        if self.times is not None:
            try:
                with self.times.open("a", encoding="utf-8") as f:
                    print(job.name, f"{job.started:.0f}", f"{ended:.0f}", sep="\t", file=f)
            except OSError as e:
                job.feed(f"cannot write {self.times}: {e.strerror}\n".encode())
                self.failed = self.failed or job

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
                say("interrupted: waiting for running jobs to save their state (again to kill them)", sys.stderr)
            self._handled = self.signals
        if self.failed and self.running and self._kill_at is None and not self.signals:
            self._kill_at = time.monotonic() + SECONDS_TO_STOP
            self._clear()
            given = f"the others get {SECONDS_TO_STOP:.0f} s to save their state"
            say(f"{self.failed.name} failed: {given}", sys.stderr)
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
        say(f"\r\x1b[K{' | '.join(shown)}", self._screen, end="")

    def _share(self) -> int:
        """Columns of the terminal for one of the jobs that run side by side."""
        try:
            columns = os.get_terminal_size(self._screen.fileno()).columns or 80
        except OSError:  # it is closed
            columns = 80
        return max(10, (columns - 1) // self._side_by_side - 3)

    def _clear(self) -> None:
        if self._screen is not None:
            say("\r\x1b[K", self._screen, end="")


def parse_jobs(words: Sequence[str], log: Path) -> list[Spec]:
    """`NAME [options] COMMAND... :: NAME [options] COMMAND...` as a list of jobs; `log` is theirs where they name none.

    Raises:
      ValueError: a job without a name or a command, or one that comes after a job that does not come before it.
    """
    jobs: list[list[str]] = [[]]
    for word in words:
        if word == SEPARATOR:
            jobs.append([])
        else:
            jobs[-1].append(word)
    specs: list[Spec] = []
    for job in jobs:
        options = {"--after": "", "--cores": "1", "--threads": "1", "--log": str(log)}
        command = job[1:]
        while len(command) > 1 and command[0] in options:
            options[command[0]] = command[1]
            command = command[2:]
        if not command or command[0] in options:
            raise ValueError(f"a job ({shlex.join(job)}) must be NAME COMMAND...; separate jobs by {SEPARATOR}")
        after = [name for name in options["--after"].split(",") if name]
        for name in after:
            if name not in [spec.name for spec in specs]:
                raise ValueError(f"`--after` ({name}) of {job[0]} must name a job before it")
        cores, threads = (_positive(option, options[option]) for option in ("--cores", "--threads"))
        specs.append(Spec(job[0], command, after, cores, threads, Path(options["--log"])))
    return specs


def _positive(option: str, value: str | int) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"`{option}` ({value}) must be a whole number above 0")
    return int(value)


def run_jobs(
    specs: Sequence[Spec],
    max_jobs: int = 1,
    gpus: Sequence[str] = (),
    times: Path | None = None,
) -> int:
    """Run jobs, appending their output to their logs; each on one of `gpus`, where there are any.

    Args:
      times: file that gets a line for each job that has succeeded: name, start and end in seconds since the epoch.
    Returns:
      0; the exit status of the first that failed, after printing its last lines to stderr; 130 after a signal.
    """
    if times is not None:
        times.parent.mkdir(parents=True, exist_ok=True)
        times.touch()
    for spec in specs:
        spec.log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        paths = dict.fromkeys(spec.log for spec in specs)
        logs = {path: stack.enter_context(path.open("a", encoding="utf-8")) for path in paths}
        shared = [path for path in paths if sum(spec.log == path for spec in specs) > 1]
        jobs = [Job(spec, f"{spec.name}: " if spec.log in shared else "", logs[spec.log]) for spec in specs]
        runner = Runner(jobs, max_jobs, gpus, times)
        status = runner.run()
    if runner.failed is not None and not runner.signals:
        job = runner.failed
        killed = " (killed: is there enough memory?)" if status == 128 + signal.SIGKILL else ""
        log = next(spec.log for spec in specs if spec.name == job.name)
        say(f"error: {job.name} failed with exit status {status}{killed}; the end of {log}:", sys.stderr)
        for line in job.last_lines:
            say(f"  {line}", sys.stderr)
    return status


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_jobs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, required=True, help="file that output is appended to (default of each job)")
    parser.add_argument("--max-jobs", type=int, default=1, help="cores to share out: most jobs take one (default: 1)")
    parser.add_argument("--gpus", default="", metavar="ID,ID...", help="GPUs, of which each job gets as many as cores")
    parser.add_argument("--times", type=Path, help="file that gets name, start and end of jobs that have succeeded")
    parser.add_argument("jobs", nargs="+", metavar="JOB", help=f"jobs as above, separated by {SEPARATOR}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        _positive("--max-jobs", args.max_jobs)
        jobs = parse_jobs(args.jobs, args.log)
        gpus = [gpu for gpu in args.gpus.split(",") if gpu]
        if len(set(gpus)) < len(gpus):
            raise ValueError(f"`--gpus` ({args.gpus}) must name each GPU once")
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    try:
        return run_jobs(jobs, args.max_jobs, gpus, args.times)
    except OSError as e:  # of its logs; what a job raises is its own
        print(f"error: {e}; give logs that can be written", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
