"""Checkpoints: whole or not at all; unreadable ones are passed over by name; no code runs on loading."""

import os
import resource
import signal

import pytest
import torch

from tiny import save_tiny_checkpoint
from twopass_kd.models.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_model,
    save_checkpoint,
)


def content(step, value=0.0, size=3):
    return {"model": {"w": torch.full((size,), value), "n": torch.tensor(step)}, "config": {}, "step": step}


def test_round_trip(tmp_path):
    save_checkpoint(content(3, 1.5), tmp_path / "sub" / "epoch-1.pt")
    got = load_checkpoint(tmp_path / "sub" / "epoch-1.pt")
    assert got["step"] == 3 and torch.equal(got["model"]["w"], torch.full((3,), 1.5))
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["epoch-1.pt"]


def test_full_disk_leaves_the_old_checkpoint_and_no_partial_file(tmp_path):
    """The kernel refuses to write past a file size limit, as it does on a full disk."""
    path = tmp_path / "epoch-1.pt"
    save_checkpoint(content(1), path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="Free disk space"):
            save_checkpoint(content(2, size=1_000_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["epoch-1.pt"]


def test_loading_does_not_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "was-here"),))

    torch.save({"model": Evil(), "config": {}}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="evil.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "was-here").exists()


def test_something_else_than_a_checkpoint_is_an_error(tmp_path):
    torch.save({"weights": 1}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="at least `model`"):
        load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="must exist"):
        load_checkpoint(tmp_path / "y.pt")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", r"is cut short or not a checkpoint: it is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer.*git lfs pull"),
        (b"<html>404</html>", "it is a web page, as a failed download leaves"),
        (b"weights", r"is cut short or not a checkpoint \(\w+\)"),
    ],
)
def test_what_stands_in_a_checkpoints_place_is_said(tmp_path, content, says):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.pt {says}|x\.pt .*: {says}"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model": 3}, "at least `model`"),
        ({"model": {"encoder": 3}}, "must be a model that this version"),
        ({"model": {}}, "must be a model that this version"),
        ({"config": {"nmae": "x"}}, "must be a model that this version.*nmae"),
        ({"phase": "student/none"}, "must be a model that this version"),
        ({"vocab_size": "many"}, "must be a model that this version"),
        ({"identity": None}, "has no identity; train again"),
    ],
)
def test_a_model_that_was_edited_is_named(tmp_path, change, says):
    save_tiny_checkpoint(tmp_path / "x.pt")
    changed = {**load_checkpoint(tmp_path / "x.pt"), **change}
    save_checkpoint({key: value for key, value in changed.items() if value is not None}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=rf"x\.pt .*{says}"):
        load_model(tmp_path / "x.pt")


@pytest.mark.parametrize("size", [100, 3000, 30000])
def test_a_checkpoint_whose_end_is_missing_is_cut_short(tmp_path, size):
    path = tmp_path / "final.pt"
    save_tiny_checkpoint(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"final\.pt is cut short or not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("edited", [{"trained_parts": 3}, {"tokens": 5}])
def test_an_entry_of_another_type_is_named(tmp_path, edited):
    path = tmp_path / "final.pt"
    save_tiny_checkpoint(path)
    save_checkpoint({**load_checkpoint(path), **edited}, path)
    with pytest.raises(CheckpointError, match=rf"final\.pt must be as this recipe wrote it: `{next(iter(edited))}`"):
        load_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(tmp_path, value):
    path = tmp_path / "final.pt"
    save_tiny_checkpoint(path)
    content = load_checkpoint(path)
    content["model"]["joiner.output_linear.bias"][0] = value
    save_checkpoint(content, path)
    with pytest.raises(CheckpointError, match=r"final\.pt must have finite weights, but joiner.*bias is not"):
        load_model(path)
