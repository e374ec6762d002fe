"""Checkpoints: whole or not at all; unreadable ones are passed over by name; no code runs on loading."""

import logging
import os
import resource
import signal

import pytest
import torch

from tiny import save_tiny_checkpoint
from twopass_kd.models.checkpoint import (
    CheckpointError,
    average_checkpoints,
    find_latest,
    load_checkpoint,
    load_model,
    remove_old,
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


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_latest_falls_back_past_a_checkpoint_cut_short_and_says_so(tmp_path, keep, caplog):
    save_checkpoint(content(10), tmp_path / "epoch-1.pt")
    save_checkpoint(content(15), tmp_path / "checkpoint-15.pt")
    save_checkpoint(content(20), tmp_path / "epoch-2.pt")
    whole = (tmp_path / "epoch-2.pt").read_bytes()
    (tmp_path / "epoch-2.pt").write_bytes(whole[:keep])
    with caplog.at_level(logging.WARNING):
        path, got = find_latest(tmp_path)
    assert path.name == "checkpoint-15.pt" and got["step"] == 15
    assert "epoch-2.pt is cut short" in caplog.text and "falling back" in caplog.text


def test_latest_counts_numbers_not_letters(tmp_path):
    for n in (9, 10):
        save_checkpoint(content(n), tmp_path / f"epoch-{n}.pt")
    assert find_latest(tmp_path)[0].name == "epoch-10.pt"
    assert find_latest(tmp_path / "none") is None


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


def test_latest_passes_over_a_foreign_file(tmp_path, caplog):
    save_checkpoint(content(10), tmp_path / "epoch-1.pt")
    torch.save({"model": {}, "config": {}}, tmp_path / "epoch-2.pt")
    assert find_latest(tmp_path)[0].name == "epoch-1.pt" and "epoch-2.pt must be a checkpoint" in caplog.text


def test_average_is_the_mean(tmp_path):
    for n, value in enumerate((1.0, 2.0, 6.0), start=1):
        save_checkpoint(content(n, value), tmp_path / f"epoch-{n}.pt")
    mean = average_checkpoints([tmp_path / f"epoch-{n}.pt" for n in (1, 2, 3)])
    torch.testing.assert_close(mean["w"], torch.full((3,), 3.0))
    assert int(mean["n"]) == 3


def test_remove_old_keeps_the_newest_of_a_kind(tmp_path):
    for n in (5, 10, 100):
        save_checkpoint(content(n), tmp_path / f"checkpoint-{n}.pt")
    for n in (8, 9, 10):
        save_checkpoint(content(n), tmp_path / f"epoch-{n}.pt")
    remove_old(tmp_path, "checkpoint", 1)
    assert sorted(p.name for p in tmp_path.glob("c*")) == ["checkpoint-100.pt"]
    remove_old(tmp_path, "epoch", 2)
    assert sorted(p.name for p in tmp_path.glob("e*")) == ["epoch-10.pt", "epoch-9.pt"]


def test_files_that_are_only_named_alike_are_neither_removed_nor_resumed_from(tmp_path):
    """Copies that a user kept beside the checkpoints were deleted as the oldest ones."""
    kept = ["checkpoint-best.pt", "epoch-.pt", "epoch-3-mine.pt"]
    for name in kept:
        save_checkpoint(content(99), tmp_path / name)
    assert find_latest(tmp_path) is None
    for kind in ("checkpoint", "epoch"):
        save_checkpoint(content(1), tmp_path / f"{kind}-1.pt")
        remove_old(tmp_path, kind, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_at_the_same_step_the_end_of_the_epoch_is_later(tmp_path):
    for name in ("checkpoint-40.pt", "epoch-2.pt"):
        save_checkpoint(content(40), tmp_path / name)
    assert find_latest(tmp_path)[0].name == "epoch-2.pt"


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
