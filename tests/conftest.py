"""What all tests share: interrupts and threads as tests want them, and one tiny experiment per test run."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# A shell starts what stands before an `&` in a script with SIGINT ignored, and children inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# As many threads as workers, so that these do not fight for the cores.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

from run_sh import TINY, command, environment, ok  # noqa: E402

EPOCHS = "phases.teacher/rnnt.num_epochs=12"


class TinyData(NamedTuple):
    """What stages 0-2 leave of tiny.yaml; for reading only."""

    corpus_dir: Path
    data_dir: Path

    @property
    def options(self) -> list:
        """Of run.sh; --exp-dir is left to the test."""
        return ["--conf", TINY, "--corpus-dir", self.corpus_dir, "--data-dir", self.data_dir]


class TinyExperiment(NamedTuple):
    """What a run leaves that was interrupted in stage 3 and one that went on to stage 10; for reading only."""

    folder: Path
    args: list  # of both runs, without --exp-dir and --stop-stage
    interrupted: dict  # what the first run left
    output: str  # of the second


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """As they were: a training that was stopped leaves its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Iterator[TinyData]:
    def make(root: Path) -> None:
        options = ["--corpus-dir", root / "corpus" / "LibriSpeech", "--data-dir", root / "data"]
        ok("--conf", TINY, *options, "--exp-dir", root / "exp", "--stop-stage", 2)

    root = made_once(tmp_path_factory, "data", make)
    before = snapshot(root / "corpus", root / "data")
    yield TinyData(root / "corpus" / "LibriSpeech", root / "data")
    assert snapshot(root / "corpus", root / "data") == before, "a test has changed what all share"


@pytest.fixture(scope="session")
def tiny_experiment(tmp_path_factory, tiny_data) -> Iterator[TinyExperiment]:
    args = [*tiny_data.options, EPOCHS]

    def make(root: Path) -> None:
        options = [*args, "--exp-dir", root / "exp"]
        runs = [interrupt_in_stage_3(options, root / "exp" / "tiny"), ok(*options, timeout=900)]
        (root / "runs.json").write_text(json.dumps(runs))

    root = made_once(tmp_path_factory, "experiment", make)
    before = snapshot(root / "exp")
    yield TinyExperiment(root / "exp" / "tiny", args, *json.loads((root / "runs.json").read_text()))
    assert snapshot(root / "exp") == before, "a test has changed what all share"


def made_once(tmp_path_factory, what: str, make: Callable[[Path], None]) -> Path:
    """The folder that pytest-xdist's workers share; the first that asks for `what` lets `make` put it there."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "a folder é"
    root.mkdir(exist_ok=True)
    with open(root / f"{what}.state", "a+") as state:
        fcntl.flock(state, fcntl.LOCK_EX)
        state.seek(0)
        found = state.read()
        if not found:
            print("begun", file=state, flush=True)
            make(root)
            print("made", file=state)
        else:
            assert found == "begun\nmade\n", f"the {what} could not be made; the first test that needed it says why"
    return root


def snapshot(*folders: Path) -> dict[str, tuple]:
    """Size and time of every file."""
    stats = {str(path): path.lstat() for folder in folders for path in folder.rglob("*") if not path.is_dir()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def interrupt_in_stage_3(args: list, experiment: Path) -> dict:
    """Start run.sh, send Ctrl-C after the first epoch; returns what it said and left."""
    phase = experiment / "teacher" / "rnnt"
    process = subprocess.Popen(
        command(*args, "--stop-stage", 3), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 300
    while not ((phase / "metrics.jsonl").is_file() and '"valid"' in (phase / "metrics.jsonl").read_text()):
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=5)[0]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to run.sh and to what it waits for
    output, _ = process.communicate(timeout=120)
    done = sorted(path.name for path in (experiment / ".stages").glob("*.done"))
    return {"status": process.returncode, "output": output, "done": done, "final": (phase / "final.pt").exists()}
