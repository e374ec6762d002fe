"""Runs commands side by side as far as they can, with one progress line.

- A job starts when those that it comes after have ended, and as many cores as it takes are free; the first ones first.
- What a command writes goes to its log, its lines prefixed by the job's name where several share one. Text that ends
  in a carriage return is a state of a progress bar: only the last one is kept. On a terminal the newest progress of
  all jobs is one line.
- When a command fails, the others are interrupted, and its last lines are shown.
- SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal is closed; not under nohup) and in a job of Slurm SIGUSR1 are passed
  on once to every command, as SIGINT; they get the time to save their state. A second signal kills them.
- When this process is killed, the kernel interrupts its commands.
"""

import codecs
import ctypes
import math
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LOG_HEAD = re.compile(r"[-\d]{10} [:,\d]{8,12} ([A-Z]+) ")  # time and level of a log line
SHOWN_ON_FAILURE = 15  # lines
SECONDS_TO_STOP = 60.0  # that the others get after a failure before they are killed
SECONDS_OF_ONE_SIGNAL = 1.0  # Slurm sends to all processes, which also pass it on: several that come together are one
SECONDS_AFTER_EXIT = 1.0  # that output of a command's own children is waited for once it has ended
PR_SET_PDEATHSIG = 1  # of prctl(2)

_libc = ctypes.CDLL(None)


@dataclass(eq=False)
class Job:
    """A command, and what has become of it.

    Attributes:
      after: names of the jobs that must have ended before it starts; only those that run with it count.
      cores: how many it takes; as many GPUs, where there are any.
      threads: OMP_NUM_THREADS of its processes.
      started, ended: seconds since the epoch; `ended` is None unless it has ended well.
    """

    name: str
    command: list[str]
    log: Path
    after: Sequence[str] = ()
    cores: int = 1
    threads: int = 1

    process: subprocess.Popen | None = field(default=None, init=False)
    gpus: list[str] = field(default_factory=list, init=False)  # that it has to itself
    started: float = field(default=0.0, init=False)
    ended: float | None = field(default=None, init=False)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=SHOWN_ON_FAILURE), init=False)
    progress: str = field(default="", init=False)  # what it is doing: its bar, or its last line
    _file: IO[str] | None = field(default=None, init=False)
    _prefix: str = field(default="", init=False)
    _exited: float = field(default=math.inf, init=False)  # on the monotonic clock
    _is_open: bool = field(default=False, init=False)  # whether more output may come
    _silent: bool = field(default=True, init=False)
    _pending: str = field(default="", init=False)  # the line that has not ended
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace"), init=False
    )

    def log_to(self, file: IO[str], prefix: str) -> None:
        self._file, self._prefix = file, prefix

    def start(self, env: dict[str, str], inherited: Sequence[int]) -> None:
        """Start the command; `inherited` are file descriptors that it keeps open.

        Raises:
          OSError: there is no such command.
        """
        say(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {self.name}: {shlex.join(self.command)}", self._file)
        # A session of its own, so that Ctrl-C in the terminal reaches it once, through us.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
            start_new_session=True, pass_fds=inherited, bufsize=0,
            preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT),
        )  # fmt: skip
        self.started, self._is_open = time.time(), True

    @property
    def stream(self) -> IO[bytes]:
        return self.process.stdout

    def read(self) -> bool:
        """Take what it has written; False at the end of its output."""
        data = os.read(self.stream.fileno(), 1 << 16)
        self.feed(data)
        return bool(data)

    def close(self) -> None:
        self._is_open = False
        self.stream.close()

    def feed(self, data: bytes) -> None:
        """Take a piece of output: lines to the log, the newest state of a bar to `progress`. Empty: the end."""
        self._silent = self._silent and not data
        *lines, self._pending = (self._pending + self._decoder.decode(data, final=not data)).split("\n")
        if not data and self._pending:
            lines, self._pending = [self._pending], ""
        for line in lines:
            self._line(line)
        if "\r" in self._pending:
            self.progress = _last_state(self._pending).strip() or self.progress
            states, _, newest = self._pending.rpartition("\r")
            self._pending = f"\r{_last_state(states)}\r{newest}"

    def _line(self, line: str) -> None:
        text = _last_state(line)
        if not text and "\r" in line:  # a bar that has wiped itself out
            return
        say(self._prefix + text, self._file)
        if not text:
            return
        self.last_lines.append(text)
        head = LOG_HEAD.match(text)
        message = text[head.end() :] if head else text
        self.progress = message.strip()
        if head and head[1] == "WARNING":
            say(f"{_CLEAR if sys.stderr.isatty() else ''}  {self.name}: {message}", sys.stderr)

    def interrupt(self) -> None:
        """Send SIGINT; SIGTERM where it has written nothing yet: it has nothing to save, and is likely in its imports,
        where SciPy's modules lose a KeyboardInterrupt."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if self._silent else signal.SIGINT)

    def kill(self) -> None:
        """Kill the command and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def status(self) -> int | None:
        """Exit status as a shell gives it (128 + N after signal N); None while it runs or before."""
        code = None if self.process is None else self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def is_over(self) -> bool:
        """Whether it has ended and all of its output is here; a child of its own may hold its pipe for ever."""
        if self.status is None:
            return False
        self._exited = min(self._exited, time.monotonic())
        return not self._is_open or time.monotonic() - self._exited > SECONDS_AFTER_EXIT


_CLEAR = "\r\x1b[K"  # of the terminal's line


def say(text: str, file: IO[str], end: str = "\n") -> None:
    """Print to a terminal or pipe, whose other end may be gone, or a log, whose disk may be full: the jobs go on."""
    try:
        print(text, end=end, file=file, flush=True)
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # else Python fails again when it flushes at its end
        if file not in (sys.stdout, sys.stderr):
            say(f"  {file.name} cannot be written any more ({e.strerror}); is the disk full?", sys.stderr)


def _last_state(line: str) -> str:
    """The last text between carriage returns that is not blank, without control characters."""
    states = [state for state in line.replace("\x1b[A", "").split("\r") if state.strip()]
    return "".join(c for c in states[-1] if c.isprintable() or c == "\t").rstrip() if states else ""


class Runner:
    """Starts jobs, on at most `max_jobs` cores at a time, and sees them through.

    Attributes:
      signals: how often we were told to stop.
      requeue: whether one of the signals was Slurm's, which ends this job soon.
    """

    def __init__(
        self, jobs: Sequence[Job], max_jobs: int, gpus: Sequence[str] = (), inherited: Sequence[int] = ()
    ) -> None:
        self.jobs = jobs
        self.waiting = list(jobs)
        self.running: list[Job] = []
        self.max_jobs = min(max_jobs, len(gpus)) if gpus else max_jobs
        self.gpus = gpus
        self.inherited = inherited
        self.failed: Job | None = None
        self.signals = 0
        self.requeue = False
        self._signalled_at = -math.inf
        self._passed_on = 0
        self._kill_at = math.inf
        self._selector = selectors.DefaultSelector()
        self._drawn = 0.0

    def run(self) -> int:
        """Returns 0; the exit status of the first that failed, whose last lines are shown; 130 after a signal.

        Raises:
          OSError: a log cannot be written.
        """
        stopping = [signal.SIGINT, signal.SIGTERM]
        stopping += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
        stopping += [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
        before = {number: signal.signal(number, self._on_signal) for number in stopping}
        try:
            with ExitStack() as stack:
                paths = [job.log for job in self.jobs]
                for path in paths:
                    path.parent.mkdir(parents=True, exist_ok=True)
                logs = {path: stack.enter_context(path.open("a", encoding="utf-8")) for path in dict.fromkeys(paths)}
                for job in self.jobs:
                    job.log_to(logs[job.log], f"{job.name}: " if paths.count(job.log) > 1 else "")
                self._loop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signals:
            return 130
        return 0 if self.failed is None else self._tell_failure(self.failed)

    def _loop(self) -> None:
        while self.running or (self.waiting and not self._stopping):
            while (job := self._next()) is not None:
                self.waiting.remove(job)
                self._start(job)
            for key, _ in self._selector.select(timeout=0.1):
                if not key.data.read():
                    self._close(key.data)
            self._react()
            for job in [job for job in self.running if job.is_over()]:
                self._finish(job)
            self._draw()
        self._clear()

    @property
    def _stopping(self) -> bool:
        return bool(self.signals or self.failed)

    def _next(self) -> Job | None:
        """The first job that may start now; one that wants more cores than there are gets all of them."""
        free = self.max_jobs - sum(job.cores for job in self.running)
        missing = {job.name for job in self.jobs if job.ended is None}
        for job in [] if self._stopping else self.waiting:
            if min(job.cores, self.max_jobs) <= free and missing.isdisjoint(job.after):
                return job
        return None

    def _on_signal(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if now - self._signalled_at > SECONDS_OF_ONE_SIGNAL:
            self.signals += 1
            self._signalled_at = now
        self.requeue = self.requeue or number == signal.SIGUSR1

    def _start(self, job: Job) -> None:
        threads = str(job.threads)
        env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        if self.gpus:
            taken = [gpu for other in self.running for gpu in other.gpus]
            job.gpus = [gpu for gpu in self.gpus if gpu not in taken][: job.cores]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(job.gpus)
        try:
            job.start(env, self.inherited)
        except OSError as e:
            job.feed(f"cannot start: {e}\n".encode())
            self.failed = self.failed or job
            return
        self._selector.register(job.stream, selectors.EVENT_READ, job)
        self.running.append(job)

    def _close(self, job: Job) -> None:
        if not job.stream.closed:
            self._selector.unregister(job.stream)
            job.close()
            job.feed(b"")

    def _finish(self, job: Job) -> None:
        self.running.remove(job)
        self._close(job)
        job.kill()  # what it has left behind
        if job.status == 0:
            job.ended = time.time()
            if len(self.jobs) > 1:
                self._clear()
                say(f"  {job.name}: {job.ended - job.started:.0f} s", sys.stdout)
        elif not self._stopping:
            self.failed = job

    def _react(self) -> None:
        """Pass signals on, and stop the others where one has failed."""
        if self.signals > self._passed_on:
            for job in self.running:
                job.interrupt() if self._passed_on == 0 else job.kill()
            if self._passed_on == 0:
                self._clear()
                say("interrupted: waiting for running jobs to save their state (again to kill them)", sys.stderr)
            self._passed_on = self.signals
        if self.failed and self.running and self._kill_at == math.inf and not self.signals:
            self._kill_at = time.monotonic() + SECONDS_TO_STOP
            self._clear()
            given = f"the others get {SECONDS_TO_STOP:.0f} s to save their state"
            say(f"{self.failed.name} failed: {given}", sys.stderr)
            for job in self.running:
                job.interrupt()
        if time.monotonic() > self._kill_at:
            for job in self.running:
                job.kill()

    def _tell_failure(self, job: Job) -> int:
        status = job.status or 1
        killed = " (killed: is there enough memory?)" if status == 128 + signal.SIGKILL else ""
        say(f"error: {job.name} failed with exit status {status}{killed}; the end of {job.log}:", sys.stderr)
        for line in job.last_lines:
            say(f"  {line}", sys.stderr)
        return status

    def _draw(self) -> None:
        if not sys.stderr.isatty() or not self.running or time.monotonic() - self._drawn < 0.2:
            return
        self._drawn = time.monotonic()
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except OSError:  # it is closed
            columns = 80
        share = max(10, (columns - 1) // len(self.running) - 3)
        alone = len(self.running) == 1
        shown = [
            (job.progress if alone or job.progress.startswith(job.name) else f"{job.name}: {job.progress}")[:share]
            for job in self.running
        ]
        say(f"{_CLEAR}{' | '.join(shown)}", sys.stderr, end="")

    def _clear(self) -> None:
        if sys.stderr.isatty():
            say(_CLEAR, sys.stderr, end="")
