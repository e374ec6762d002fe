"""A training's checkpoints: unreadable ones are passed over by name, old ones go, foreign ones stay."""

import logging

import pytest
import torch

from twopass_kd.models.checkpoint import save_checkpoint
from twopass_kd.training.checkpoint_files import find_latest, remove_old


def content(step, value=0.0, size=3):
    return {"model": {"w": torch.full((size,), value), "n": torch.tensor(step)}, "config": {}, "step": step}


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


def test_latest_passes_over_a_foreign_file(tmp_path, caplog):
    save_checkpoint(content(10), tmp_path / "epoch-1.pt")
    torch.save({"model": {}, "config": {}}, tmp_path / "epoch-2.pt")
    assert find_latest(tmp_path)[0].name == "epoch-1.pt" and "epoch-2.pt must be a checkpoint" in caplog.text


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
