"""What a stopped run.sh says and leaves: it promised to go on where --force would have started anew."""

import fcntl
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from run_sh import TINY, command, environment

LONG = "corpus.synthesis.num_sentences=4000"  # stage 0 would take minutes


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_locked(folder) -> bool:
    with open(folder / ".lock") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def start(tmp_path):
    """Starts run.sh as a script does with nohup before it and an `&` behind it: SIGHUP and SIGINT ignored."""
    started = []

    def run(*args):
        options = ["--exp-dir", tmp_path / "e", "--data-dir", tmp_path / "d", "--corpus-dir", tmp_path / "c"]
        process = subprocess.Popen(
            command("--conf", TINY, "--stop-stage", 0, "--nj", 1, *options, LONG, *args), env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)],
        )  # fmt: skip
        started.append(process)
        log = tmp_path / "e" / "tiny" / "log" / "stage-0.log"
        wait_until(lambda: log.exists() and log.stat().st_size > 0)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.stdout.close()


@pytest.mark.parametrize("options, sent, said", [
    ([], signal.SIGINT, "Stage 0 stopped; the same command goes on from here"),
    (["--force"], signal.SIGTERM, "Stage 0 stopped; the same command, without --force, goes on from here"),
])  # fmt: skip
def test_run_sh_in_the_background_stops_on_sigint_and_sigterm(start, tmp_path, options, sent, said):
    process = start(*options)
    ignored = int(re.search("^SigIgn:(.*)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)[1], 16)
    assert [bool(ignored >> (number - 1) & 1) for number in (signal.SIGINT, signal.SIGHUP)] == [False, True]
    process.send_signal(sent)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and output.splitlines()[-1] == said
    assert not is_locked(tmp_path / "e" / "tiny") and not is_locked(tmp_path / "d")


def test_run_sh_killed_holds_its_folders_until_its_jobs_have_ended(start, tmp_path):
    process = start()
    launcher = psutil.Process(process.pid)
    wait_until(lambda: any("local/get_corpus.py" in c.cmdline() for c in launcher.children(recursive=True)))
    children = launcher.children(recursive=True)
    job = next(c for c in children if "local/get_corpus.py" in c.cmdline())
    job.suspend()
    wait_until(lambda: job.status() == psutil.STATUS_STOPPED)  # before that, SIGINT may end it at once
    process.kill()
    process.wait()
    assert is_locked(tmp_path / "e" / "tiny") and is_locked(tmp_path / "d")
    job.resume()
    wait_until(lambda: not is_locked(tmp_path / "e" / "tiny") and not is_locked(tmp_path / "d"))
    wait_until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children))
