"""gpu_check.sh at its small size on a CPU: what it measures is no GPU's, but all of it runs."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twopass_kd.losses.rnnt_backend import BACKENDS

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_check")


@pytest.fixture
def measure(gpu_check, capsys):
    """Run a part in this process; returns its rows by what they are about."""
    parts = importlib.import_module("gpu_parts")

    def run(*args):
        parts.main([*args, "--cpu"])
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(gpu_check.figures(row) for row in rows)
        return {row.pop("what"): row for row in rows}

    return run


def test_losses_are_those_of_float64(measure):
    rows = measure("losses")
    assert set(rows) == set(BACKENDS)
    ran = {name: row for name, row in rows.items() if "text" not in row}
    assert "torch" in ran
    for row in ran.values():
        assert row["value_error"] < 1e-5 and row["gradient_error"] < 1e-4 and row["milliseconds"] > 0


@pytest.mark.parametrize("phase", ["student/las_kd", "student/deep"])
def test_a_step_is_measured_beside_its_estimate(measure, phase):
    ((what, row),) = measure("step", "librispeech_100h", phase).items()
    assert what == "4 x 3 s, float32" and row["frames_per_second"] == pytest.approx(1200 / row["seconds"])
    assert row["audio_seconds_per_second"] == pytest.approx(12 / row["seconds"])
    assert 0.3 < row["busy"] <= 1 and row["tflops"] > 0 and row["estimated_gib"] > 0 and row["peak_gib"] >= 0


def test_rows_and_decoding_are_measured(measure):
    assert list(measure("rows")) == ["8 rows", "9 rows", "9 rows and 7 of zeros", "16 rows"]
    rows = measure("decoding")
    assert [name.split(",")[0] for name in rows] == ["greedy_search", "first_pass", "first_pass and rescoring"]
    assert all(row["real_time_factor"] > 0 and row["tokens_per_second"] > 0 for row in rows.values())


def test_time_in_which_something_ran_is_counted_once(gpu_check):
    covered = importlib.import_module("gpu_parts").covered
    assert covered([(0, 2), (1, 3), (5, 6), (5.2, 5.5)]) == 4 and covered([]) == 0


def python(gpu_check, code, limit=60.0):
    return gpu_check.Part("a part", [sys.executable, "-c", code], limit)


def test_a_part_that_fails_or_takes_too_long_keeps_what_it_measured(gpu_check, tmp_path):
    row = {"what": "first", "seconds": 1.5}
    prints = f"import time; print({json.dumps(row)!r}, flush=True); print('of a library'); "
    failed = gpu_check.run(python(gpu_check, prints + "raise ValueError('no memory')"), tmp_path)
    assert failed.rows == [row] and failed.error == "failed with exit status 1: ValueError: no memory"
    begin = time.monotonic()
    late = gpu_check.run(python(gpu_check, prints + "time.sleep(60)", limit=3), tmp_path)
    assert late.rows == [row] and late.error == "not finished within its 3 s" and time.monotonic() - begin < 30
    fine = gpu_check.run(python(gpu_check, prints), tmp_path)
    assert fine.rows == [row] and fine.error is None
    lines = gpu_check.table([failed, late, fine]).splitlines()
    assert [line.split("  ")[-1] for line in lines[:3]] == ["1.500 s"] * 3 and len(lines) == 5


def test_all_parts_take_ten_minutes_at_most(gpu_check, tmp_path):
    (tmp_path / "train").mkdir()
    args = gpu_check.get_parser().parse_args(["--corpus-dir", str(tmp_path)])
    assert sum(part.limit for part in gpu_check.parts(args, tmp_path)) <= 600


@pytest.mark.slow
def test_the_command_prints_one_table_and_leaves_a_json(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", BENCHMARKS / "gpu_check.sh", "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT A GPU MEASUREMENT" in done.stdout and "no --corpus-dir was given" in done.stdout
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    names = [part["part"].split()[0] for part in content["parts"]]
    assert names == ["machine", "losses", *["step"] * 8, "rows", "ranks", "decoding"]
    assert all(part["error"] is None and part["rows"] for part in content["parts"])


@pytest.mark.slow
def test_ranks_add_up_gradients(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "egs/librispeech/twopass_kd")}
    command = [sys.executable, BENCHMARKS / "gpu_parts.py", "ranks", "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and json.loads(done.stdout)["what"].startswith("1 ranks, gloo, "), done.stderr
