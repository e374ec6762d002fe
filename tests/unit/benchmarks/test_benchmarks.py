"""The benchmarks run as the README says, from anywhere, on small sizes."""

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from small_export import SYSTEM, exportable_experiment
from tiny import lively
from twopass_kd.bin.export import export
from twopass_kd.config.load import config_to_dict, load_config
from twopass_kd.models.checkpoint import build_model, save_checkpoint

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests/conf/tiny.yaml"
HEADS = "--batch-size 2 --num-frames 24 --num-positions 6 --vocab-size 20 --joiner-dim 16 --repeats 1".split()


def run(name: str, folder: Path, *args: str, fails: bool = False) -> str:
    """What a benchmark prints; where it fails, the error."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, ROOT / "benchmarks" / name, "--conf", TINY, *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_lattice_kd_prints_all_ratios(tmp_path: Path):
    text = run("lattice_kd.py", tmp_path, *HEADS, "--utterances", "4", "--step-repeats", "1")
    assert "rnnt_type=modified" in text
    assert "| time, band with its simple loss / full lattice, which needs no simple loss | " in text
    assert "| memory, band / full lattice | " in text and "| KD step / (student step + teacher forward) | " in text


def test_train_step_prints_steps_and_parts(run_here):
    text = run_here("train_step.py", "--conf", TINY, "--repeats", "1", "train.max_duration=5")
    for name in ("teacher, RNN-T", "student, RNN-T + KD", "pruned loss", "simple loss", "optimizer"):
        assert any(line.startswith(f"{name} ") for line in text.splitlines()), name


def test_loss_backends_prints_and_writes_each_backend(tmp_path: Path, run_here):
    written = tmp_path / "losses.json"
    options = ["--device", "cpu", "--sizes", "2,6,3,8", "--repeats", "1", "--json", written, "train.max_duration=5"]
    text = run_here("loss_backends.py", "--conf", TINY, *options)
    rows = ["simple, modified, 2,6,3,8", "pruned, regular, 2,6,3,8", "step, RNN-T", "step, RNN-T + KD"]
    for name in rows:
        assert f"\n| {name} | " in text
    found = json.loads(written.read_text())
    assert found["device"] == "cpu" and set(rows) < set(found["seconds"])
    assert all("torch" in times and min(times.values()) > 0 for times in found["seconds"].values())
    assert "without triton: `loss.backend` (triton) must" in text
    assert ("torch / k2, largest: " in text) == ("without k2: " not in text)


@pytest.mark.slow
def test_stacks_prints_a_ratio_for_each_phase(tmp_path: Path):
    pythons = ["--k2-python", sys.executable, "--torch2-python", sys.executable]
    text = run("stacks.py", tmp_path, *pythons, "--rounds", "1", "--repeats", "1", "train.max_duration=5")
    assert f"torch2: Python {platform.python_version()}, torch {torch.__version__}" in text
    for name in ("teacher, RNN-T", "student, RNN-T", "student, RNN-T + KD", "student, LAS + KD"):
        assert re.search(rf"^{re.escape(name)} ( +[\d.]+){{6}}$", text, re.MULTILINE), text
    assert "k2 / torch2, smallest: " in text


@pytest.mark.slow
def test_sampler_startup_prints_starts_and_resumes(tmp_path: Path):
    text = run("sampler_startup.py", tmp_path, "--cuts", "2000", "--world-sizes", "2")
    for name in ("first time", "start, 2 ranks", "resume, 2 ranks"):
        assert any(line.startswith(f"| {name} | ") for line in text.splitlines()), name


def test_features_prints_each_extractor(run_here):
    text = run_here("features.py", "--conf", TINY, "--utterances", "2", "--repeats", "1", "--batch-sizes", "2")
    names = ["Lhotse Fbank", "on the device", *(["kaldifeat, 2 at once"] if "no kaldifeat: " not in text else [])]
    for name in names:
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} | "))
        assert all(float(number) > 0 for number in row.split("|")[2:4])


def test_median_seconds_takes_turns_and_leaves_the_first_round_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    common, order = importlib.import_module("common"), []
    found = common.median_seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3 and set(found) == {"a", "b"} and all(v > 0 for v in found.values())


def test_lattice_kd_uses_the_topology_it_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    lattice_kd = importlib.import_module("lattice_kd")
    args = lattice_kd.get_parser().parse_args(HEADS)

    def gradient(variant: str, rnnt_type: str) -> torch.Tensor:
        heads = lattice_kd.Heads(args, rnnt_type)
        heads.variants()[variant]()
        return heads.student[0].grad

    for variant in ("band", "full lattice"):
        modified, regular = gradient(variant, "modified"), gradient(variant, "regular")
        assert torch.isfinite(modified).all() and not torch.allclose(modified, regular, atol=1e-3)
    # The closed-form gradient is that of the plain one, so both rows time the same work.
    for variant in ("band", "full lattice"):
        torch.testing.assert_close(gradient(variant, "modified"), gradient(f"{variant}, plain", "modified"))


def test_first_pass_prints_its_ratios(tmp_path: Path, run_here):
    cfg, data_dir, exp_dir = exportable_experiment(tmp_path, utterances=2)
    folder = export(cfg, SYSTEM, data_dir, exp_dir)
    text = run_here("first_pass.py", folder, tmp_path / "audio", "--repeats", "1", "--limit", "3")
    assert text.startswith("3 recordings, ")
    for name in ("ours / sherpa-onnx, greedy_search: ", "ours / sherpa-onnx, modified_beam_search: ", "two-pass / "):
        assert name in text


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """As `run`, without a process of its own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def call(name: str, *args: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        importlib.import_module(name.removesuffix(".py")).main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def data_dir(tiny_data) -> Path:
    return tiny_data.data_dir


def test_searches_prints_each_search_beside_greedy(tmp_path: Path, data_dir: Path, run_here):
    pytest.importorskip("k2")
    cfg = load_config(TINY)
    model = lively(build_model(cfg, "student", cfg.tokens.vocab_size))
    content = {
        "model": model.state_dict(),
        "config": config_to_dict(cfg),
        "phase": "student/deep",
        "vocab_size": cfg.tokens.vocab_size,
        **{"identity": "", "tokens_digest": "", "trained_parts": []},
    }
    path = tmp_path / "student" / "deep" / "final.pt"
    save_checkpoint(content, path)
    text = run_here("searches.py", "--conf", TINY, "--data-dir", data_dir, "--checkpoint", path, "--repeats", "1")
    rows = [line.split(" | ")[0][2:] for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:5] == ["greedy_search", "first_pass", "fast_beam_search", "fast_beam_search_LG, scale 0.05"]
    assert not (tmp_path / "graphs").exists()


@pytest.mark.slow
def test_ddp_throughput_compares_one_rank_two_ranks_and_two_trainings(tmp_path: Path, data_dir: Path):
    text = run("ddp_throughput.py", tmp_path, "--data-dir", data_dir, "--repeats", "1", "train.max_duration=2")
    found = [float(line.split(" s of audio")[0].split()[-1]) for line in text.splitlines() if " s of audio" in line]
    assert len(found) == 3 and min(found) > 0
    ratio = float(text.split("2 ranks / 1 rank: ")[1].split()[0])
    assert ratio == pytest.approx(found[1] / found[0], abs=0.02)


@pytest.mark.slow
def test_delay_scan_prints_error_rates_and_delays_of_each_arm(tmp_path: Path, tiny_data, tiny_experiment):
    folders = ["--data-dir", tiny_data.data_dir, "--exp-dir", tiny_experiment.folder.parent]
    text = run("delay_scan.py", tmp_path, "out", *folders, "--penalties", "0.1", "--shifts", "-1")
    rows = [row.strip("| ").split(" | ") for row in text.split("| test-clean |")[1].splitlines()[2:5]]
    names = ["teacher, penalty 0.1", *(f"student of teacher 0.1, penalty 0.1, shift {shift}" for shift in (0, -1))]
    assert [row[0] for row in rows] == names and all(len(row) == 6 and float(row[1]) >= 0 for row in rows)


@pytest.mark.slow
def test_ablation_compares_arms_with_the_first_one_over_seeds(tmp_path: Path, tiny_data, tiny_experiment):
    for seed in (1, 2):
        (tmp_path / f"exp/tiny/seed-{seed}").mkdir(parents=True)
        (tmp_path / f"exp/tiny/seed-{seed}/teacher").symlink_to(tiny_experiment.folder / "teacher")
    folders = ["--data-dir", tiny_data.data_dir, "--exp-dir", tmp_path / "exp"]
    arms = ["as the config", "temperature 2", "scale 2"]
    text = run("ablation.py", tmp_path, "out", *folders, "--seeds", "1", "2", "--arms", *arms)
    for part in ("dev-clean", "test-clean", "test-other"):
        rows = [row.strip("| ").split(" | ") for row in text.split(f"| {part} |")[1].splitlines()[2:5]]
        assert [row[0] for row in rows] == arms and all(len(row) == 6 for row in rows)
        assert rows[0][2] == rows[0][4] == "+0.00; +0.00 +0.00"
    assert "| temperature 2 | " in text.split("| dev loss on the texts, nats per frame |")[1]

    for seed in (1, 2):  # the students of an experiment
        trained = tmp_path / f"out/as_the_config/tiny/seed-{seed}/student"
        shutil.copytree(trained, tmp_path / f"exp/tiny/seed-{seed}/student")
    arms = ["as the config", "no LAS distillation"]
    text = run("ablation.py", tmp_path, "out2", *folders, "--seeds", "1", "2", "--whole", "--arms", *arms)
    assert all("two-pass, mean" in text.split(f"| {part} |")[1] for part in ("dev-clean", "test-clean", "test-other"))
    for arm in ("as_the_config", "no_LAS_distillation"):  # which have that phase of the experiment
        first, whole = (tmp_path / out / "tiny/seed-1/student/rnnt_kd/final.pt" for out in ("exp", f"out2/{arm}"))
        assert first.stat().st_mtime == whole.stat().st_mtime  # copied, not trained again
    failed = run("ablation.py", tmp_path, "out3", *folders, "--arms", "no LAS distillation", fails=True)
    assert "`--arms` (no LAS distillation) differ in the second pass, which needs `--whole`" in failed


def test_resume_cost_stops_and_goes_on(tmp_path: Path, data_dir: Path):
    more = ["--steps", "3", "--repeats", "1", "phases.teacher/rnnt.num_epochs=40"]
    text = run("resume_cost.py", tmp_path, "--data-dir", data_dir, *more)
    for words in ("anew, from the command", "from SIGTERM to the end", "resumed, from the command", "the stop cost"):
        assert any(line.startswith(words) for line in text.splitlines()), words
