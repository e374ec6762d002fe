"""stages/jobs.py, which starts the commands of run.sh: real processes, no recipe."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from run_sh import RECIPE
from twopass_kd.stages.jobs import Runner

RUN = """
import json, sys
from pathlib import Path
from twopass_kd.stages.jobs import Job, Runner

jobs, max_jobs, gpus, times = json.loads(sys.argv[1])
jobs = [Job(**{**job, "log": Path(job["log"])}) for job in jobs]
try:
    status = Runner(jobs, max_jobs, gpus).run()
except OSError as e:
    sys.exit(f"error: {e}")
Path(times).write_text("".join(f"{job.name}\\t{job.started}\\t{job.ended}\\n" for job in jobs if job.ended))
sys.exit(status)
"""
SAVES_ON_INTERRUPT = """
import signal, sys, time
def stop(*_):
    open(sys.argv[1], "w").write("saved")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(30)
"""


def job(name, *command, **settings):
    return {"name": name, "command": [str(word) for word in command], **settings}


def launch(log, *jobs, max_jobs=2, gpus=(), **kwargs):
    """A process that runs `jobs`, to whose logs `log` is the usual one."""
    jobs = [{"log": str(log), **a_job} for a_job in jobs]
    command = [sys.executable, "-c", RUN, json.dumps([jobs, max_jobs, list(gpus), f"{log}.times"])]
    env = {**os.environ, "PYTHONPATH": str(RECIPE)}
    return subprocess.Popen(command, **{"stderr": subprocess.PIPE, "text": True, "env": env, **kwargs})


def finish(process):
    _, err = process.communicate(timeout=20)
    return process.returncode, err


def wait_for(path, text, times=1, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.is_file() and path.read_text().count(text) >= times:
            return
        time.sleep(0.02)
    raise AssertionError(f"{text!r} {times} times not in {path} after {seconds} s")


def test_jobs_prefixes_lines_and_keeps_last_state_of_bars(tmp_path):
    log = tmp_path / "sub" / "a.log"
    bar = r"printf '\r 10%%'; printf '\r 90%%'; printf '\r100%%\n'; echo threads=$OMP_NUM_THREADS; printf 'no newline'"
    code, err = finish(launch(log, job("one", "bash", "-c", bar, threads=3), job("two", "echo", "é")))
    assert (code, err) == (0, "")
    lines = [line for line in log.read_text().splitlines() if not line.startswith("#")]
    assert [x for x in lines if x.startswith("one")] == ["one: 100%", "one: threads=3", "one: no newline"]
    assert [x for x in lines if x.startswith("two")] == ["two: é"]


def test_jobs_failure_stops_the_other_and_shows_last_lines(tmp_path):
    log, saved = tmp_path / "a.log", tmp_path / "saved"
    fails = f"until grep -q '^other: ready' {log}; do sleep 0.02; done; echo the reason; exit 3"
    start = time.monotonic()
    other = job("other", sys.executable, "-c", SAVES_ON_INTERRUPT, saved)
    code, err = finish(launch(log, other, job("bad", "bash", "-c", fails)))
    assert code == 3
    assert "error: bad failed with exit status 3" in err and "  the reason" in err and str(log) in err
    assert saved.read_text() == "saved"
    assert time.monotonic() - start < 15


def test_jobs_max_jobs_one_runs_in_order(tmp_path):
    log = tmp_path / "a.log"
    jobs = [job(name, "bash", "-c", "echo start; sleep 0.1; echo end") for name in ("a", "b")]
    assert finish(launch(log, *jobs, max_jobs=1))[0] == 0
    lines = [line for line in log.read_text().splitlines() if not line.startswith("#")]
    assert lines == ["a: start", "a: end", "b: start", "b: end"]


def test_jobs_starts_each_job_after_those_it_needs_on_the_cores_it_takes(tmp_path):
    shared, own = tmp_path / "a.log", tmp_path / "b" / "own.log"
    jobs = [
        job("wide", "bash", "-c", "sleep 0.2", cores=2),
        job("needs-wide", "bash", "-c", "sleep 0.2", after=["wide", "not-run-now"]),
        job("last", "echo", "done", after=["wide", "needs-wide"], log=str(own)),
        job("beside", "bash", "-c", "sleep 0.2"),
    ]
    code, err = finish(launch(shared, *jobs))
    assert (code, err) == (0, "")
    lines = [line.split() for line in shared.read_text().splitlines() if line.startswith("#")]
    assert [line[3] for line in lines] == ["wide:", "needs-wide:", "beside:"]  # in the order of starting
    assert [line for line in own.read_text().splitlines() if line[0] != "#"] == ["done"]  # alone in its log: no prefix
    times = [line.split("\t") for line in (tmp_path / "a.log.times").read_text().splitlines()]
    started = {name: float(start) for name, start, _ in times}
    ended = {name: float(end) for name, _, end in times}
    assert len(times) == 4 and all(started[name] <= ended[name] for name in started)
    assert ended["wide"] <= started["needs-wide"] and ended["needs-wide"] <= started["last"]


def test_jobs_job_that_fails_keeps_what_needs_it_from_starting(tmp_path):
    log = tmp_path / "a.log"
    code, _ = finish(launch(log, job("a", "false"), job("b", "echo", "no", after=["a"]), max_jobs=1))
    assert code == 1 and "b:" not in log.read_text() and (tmp_path / "a.log.times").read_text() == ""


def test_jobs_missing_command_is_an_error(tmp_path):
    code, err = finish(launch(tmp_path / "a.log", job("a", "no-such-command-here")))
    assert code != 0
    assert "cannot start" in err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_jobs_signal_lets_all_jobs_save(tmp_path, sent):
    log = tmp_path / "a.log"
    jobs = [job(n, sys.executable, "-c", SAVES_ON_INTERRUPT, tmp_path / n) for n in ("a", "b")]
    process = launch(log, *jobs)
    wait_for(log, ": ready", times=2)
    process.send_signal(sent)
    assert finish(process)[0] == 130
    assert [(tmp_path / n).read_text() for n in ("a", "b")] == ["saved", "saved"]


def test_jobs_under_nohup_goes_on(tmp_path):
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = launch(tmp_path / "log", job("a", "sh", "-c", "echo ready; sleep 1; echo done"), **ignored)
    wait_for(tmp_path / "log", "ready")
    process.send_signal(signal.SIGHUP)
    assert finish(process) == (0, "") and "done" in (tmp_path / "log").read_text()


def test_jobs_goes_on_without_anybody_who_reads_or_room_for_the_log(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    (tmp_path / "log").symlink_to("/dev/full")
    jobs = [job(name, "sh", "-c", f"echo x; sleep 0.2; touch {tmp_path}/{name}") for name in "ab"]
    status, err = finish(launch(tmp_path / "log", *jobs, stdout=writer))
    os.close(writer)
    assert (status, err) == (0, f"  {tmp_path}/log cannot be written any more (No space left on device); is the disk"
                                " full?\n")  # fmt: skip
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_jobs_log_that_is_a_folder_is_an_error(tmp_path):
    status, err = finish(launch(tmp_path, job("a", "true")))
    assert status == 1 and err.startswith("error: [Errno 21] Is a directory") and "Traceback" not in err


def test_jobs_ends_a_job_that_loses_its_interrupt_before_it_writes_anything(tmp_path):
    # As a Python program does while it imports SciPy: found in a run.sh that was stopped in its first second.
    loses_it = "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: open(sys.argv[1], 'w').close())"
    ready, lost = tmp_path / "ready", tmp_path / "lost"
    code = f"{loses_it}; open(sys.argv[2], 'w').write('ready'); time.sleep(60)"
    process = launch(tmp_path / "a.log", job("a", sys.executable, "-c", code, lost, ready))
    wait_for(ready, "ready")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 130 and not lost.exists()


def test_jobs_second_signal_kills(tmp_path):
    log = tmp_path / "a.log"
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    process = launch(log, job("a", sys.executable, "-c", deaf))
    wait_for(log, "\nready")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)  # the same one, passed on twice
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 130


def test_jobs_signals_that_come_together_are_one(monkeypatch):
    """As Slurm's, which sends to all processes of a job, of which some pass it on."""
    runner = Runner([], 1)
    for now, number, signals in ((10, signal.SIGUSR1, 1), (10.9, signal.SIGTERM, 1), (12, signal.SIGINT, 2)):
        monkeypatch.setattr("twopass_kd.stages.jobs.time", SimpleNamespace(monotonic=lambda now=now: now))
        runner._on_signal(number, None)
        assert runner.signals == signals and runner.requeue


def test_jobs_gives_each_job_a_gpu_of_its_own(tmp_path):
    log = tmp_path / "a.log"
    show = "import os, time; print('on', os.environ['CUDA_VISIBLE_DEVICES'], time.monotonic()); time.sleep(0.5)"
    process = launch(log, *(job(name, sys.executable, "-c", show) for name in "abc"), max_jobs=3, gpus="47")
    assert finish(process)[0] == 0
    lines = [line.split() for line in log.read_text().splitlines() if ": on" in line]
    started = sorted((float(when), gpu) for _, _, gpu, when in lines)
    assert {gpu for _, gpu in started[:2]} == {"4", "7"} and started[2][0] - started[0][0] > 0.4


def test_jobs_gives_a_job_a_gpu_for_each_of_its_cores(tmp_path):
    log = tmp_path / "a.log"
    show = ["bash", "-c", "echo on $CUDA_VISIBLE_DEVICES; sleep 0.3"]
    jobs = [job("two", *show, cores=2), job("all", *show, cores=8), job("one", *show)]
    assert finish(launch(log, *jobs, max_jobs=9, gpus="012"))[0] == 0
    found = dict(line.split(": on ") for line in log.read_text().splitlines() if ": on" in line)
    assert found == {"two": "0,1", "one": "2", "all": "0,1,2"}  # as many as there are


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_jobs_started_by_a_shell_in_the_background_passes_interrupts_on(tmp_path, sent):
    # A script starts its background jobs with SIGINT ignored; neither we nor our commands may inherit that.
    log, saved = tmp_path / "a.log", tmp_path / "saved"
    default_handler = "import sys,time\ntry:\n print('ready',flush=True)\n time.sleep(30)\n"
    default_handler += "except KeyboardInterrupt:\n open(sys.argv[1],'w').write('saved')"
    process = launch(
        log, job("a", sys.executable, "-c", default_handler, saved),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    wait_for(log, "\nready")
    process.send_signal(sent)
    assert finish(process)[0] == 130
    assert saved.read_text() == "saved"


def test_jobs_shows_progress_on_a_terminal(tmp_path):
    main, side = os.openpty()
    command = "for i in 1 2 3; do printf '\\r step %s of 3' $i; sleep 0.4; done"
    log = tmp_path / "a.log"
    process = launch(log, job("a", "bash", "-c", command), stderr=side)
    os.close(side)
    assert process.wait(timeout=20) == 0
    shown = b""
    try:
        while piece := os.read(main, 4096):
            shown += piece
    except OSError:  # all read, and the other end is closed
        pass
    os.close(main)
    assert b"step 2 of 3" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert [x for x in log.read_text().splitlines() if not x.startswith("#")] == [" step 3 of 3"]


def test_jobs_keeps_messages_apart_from_the_bar_they_were_written_behind(tmp_path):
    log = tmp_path / "a.log"
    bar = (
        "import logging; from tqdm import tqdm; from twopass_kd.config.environment import setup_logging\n"
        "setup_logging()\n"
        "for i in tqdm(range(3)): logging.warning('message %d', i)"
    )
    code, err = finish(launch(log, job("a", sys.executable, "-c", bar)))
    assert code == 0 and err == "  a: message 0\n  a: message 1\n  a: message 2\n"
    *messages, ended = log.read_text().splitlines()[-4:]
    assert [x.split(" ", 2)[2] for x in messages] == [f"WARNING message {i}" for i in range(3)]
    assert ended.startswith("100%")


def test_jobs_are_interrupted_where_who_runs_them_is_killed(tmp_path):
    process = launch(tmp_path / "log", job("a", sys.executable, "-c", SAVES_ON_INTERRUPT, tmp_path / "saved"))
    wait_for(tmp_path / "log", "\nready")
    process.kill()
    wait_for(tmp_path / "saved", "saved")
