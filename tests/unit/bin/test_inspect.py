"""`bin/inspect.py` tells what a checkpoint is, and names the file that it cannot read."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fake_experiment import write_fake_experiment
from tiny import PIECES, TINY_CONF, save_tiny_checkpoint
from twopass_kd.bin import inspect as program
from twopass_kd.config.load import load_config
from twopass_kd.models.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from twopass_kd.scoring.results import build_results, write_results
from twopass_kd.training.training_log import environment_record


@pytest.fixture
def run(monkeypatch, capsys, caplog):
    """Runs the program; returns its exit status, what it printed and what it logged."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, args)])
        monkeypatch.setattr(program, "setup_logging", lambda: None)
        caplog.clear()
        return program.main(), capsys.readouterr().out, caplog.text

    return run


def rewrite(path, **entries):
    """Change entries of a checkpoint."""
    save_checkpoint({**load_checkpoint(path), **entries}, path)


def test_finished_model(tmp_path, run):
    path = tmp_path / "tiny" / "student" / "deep" / "final.pt"
    model = save_tiny_checkpoint(path)
    environment = environment_record(world_size=2)
    change = {"step": 7, "key": "train.precision", "before": "float16", "now": "float32"}
    rewrite(
        path, averaged_steps=90, step=1234, train_seconds=600.0, environment=environment, left_out=3, changes=[change]
    )
    status, text, _ = run(path)
    assert status == 0
    assert text.splitlines()[0] == str(path)
    sizes = model.deployed_parameters()
    for words in ("student/deep of tiny", "running mean of the last 90 steps; 1234 steps, 10.0 min", "world_size 2",
                  "3 times an utterance", "train.precision float16, from step 7 on float32",
                  f"{sizes['total']:,} (", f"attention_decoder {sizes['attention_decoder']:,}",
                  weights_digest(model.state_dict()), environment["torch"], environment["command"]):  # fmt: skip
        assert words in text, words
    assert "WER" not in text  # nothing has been decoded


def test_checkpoint_to_resume_from(tmp_path, run):
    path = tmp_path / "checkpoint-30.pt"
    save_tiny_checkpoint(path, phase="teacher/rnnt")
    progress = {"epoch": 2, "batch": 7, "step": 30, "best_valid": 4.5, "best_epoch": 1, "train_seconds": 90.0}
    rewrite(path, optimizer={}, **progress)
    text = run(path)[1]
    assert "after 1 of 2 epochs and 7 batches of each rank; 30 steps, 1.5 min; best on dev: 4.5000 in epoch 1" in text


def test_whole_config(tmp_path, run):
    path = tmp_path / "final.pt"
    save_tiny_checkpoint(path)
    status, text, _ = run("--config", path)
    assert status == 0 and yaml.safe_load(text) == load_checkpoint(path)["config"]


def test_wer_is_that_of_this_model_only(tmp_path, run):
    cfg = load_config(TINY_CONF, [f"tokens.vocab_size={len(PIECES)}"])
    write_fake_experiment(tmp_path, cfg)
    results = build_results(cfg, tmp_path / "tiny", progress=False)
    write_results(results, tmp_path / "tiny" / "results.json")
    path = tmp_path / "tiny" / "student" / "deep" / "final.pt"
    save_tiny_checkpoint(path)
    decoded = json.loads((tmp_path / "tiny" / "decode" / "student" / "decode.json").read_text())
    rewrite(path, identity=decoded["identity"])
    wer = results.system("student").wer["test-clean"].two_pass.wer
    assert f"two-pass {wer:.2f}" in run(path)[1]
    rewrite(path, identity="another")
    assert "WER" not in run(path)[1]
    rewrite(path, identity=decoded["identity"])
    shutil.copy(path, path.with_name("epoch-1.pt"))
    assert "WER" not in run(path.with_name("epoch-1.pt"))[1]

    for name in ("results.json", "decode/student/decode.json"):  # edited or cut short: the others are shown
        file = tmp_path / "tiny" / name
        good = file.read_text()
        file.write_text("{}")
        status, text, log = run(path, path.with_name("epoch-1.pt"))
        assert status == 1 and f"{file} must have" in log and str(path.with_name("epoch-1.pt")) in text
        file.write_text(good)


class Evil:
    def __reduce__(self):
        return print, ("code of the file has run",)


def test_what_is_no_checkpoint_is_named_and_never_run(tmp_path, run):
    good, cut, evil, other = (tmp_path / name for name in ("good.pt", "cut.pt", "evil.pt", "other.pt"))
    save_tiny_checkpoint(good)
    cut.write_bytes(good.read_bytes()[:3000])
    torch.save({"model": Evil(), "config": {}}, evil)
    torch.save({"weights": torch.zeros(3)}, other)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    for path in (cut, evil, other, tmp_path / "raw.pt", tmp_path / "missing.pt"):
        status, text, log = run(path, good)
        assert status == 1 and str(path) in log and str(good) in text, path  # the others are shown all the same
        assert "has run" not in text and "Traceback" not in log


@pytest.mark.parametrize(
    "change", [{"phase": "student/none"}, {"vocab_size": 7}, {"config": {"nmae": "x"}}, {"trained_parts": 3}]
)
def test_checkpoint_that_does_not_fit_its_own_config_is_named(tmp_path, run, change):
    path = tmp_path / "final.pt"
    save_tiny_checkpoint(path)
    rewrite(path, **change)
    status, _, log = run(path)
    assert status == 1 and str(path) in log and "must be a model" in log


@pytest.mark.parametrize("name, words", [("inspect.py", "CHECKPOINT"), ("train.py", "--phase")])
def test_programs_run_by_their_path_find_pythons_own_inspect(name, words):
    folder = Path(program.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(folder.parents[1])}
    command = [sys.executable, folder / name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and words in done.stdout, done.stderr
