"""The training loop: exact resume at any step, what is left on disk, NaN and interruption."""

import copy
import json

import pytest
import torch

from tiny_training import make_data, make_trainer, stop_after
from twopass_kd.models.checkpoint import load_checkpoint
from twopass_kd.training.trainer import Interrupted, learning_rate


def test_the_loss_goes_down_and_the_files_are_there(tmp_path):
    final = make_trainer(tmp_path / "a").run(make_data())
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert {"epoch-1.pt", "epoch-2.pt", "epoch-3.pt", "best-valid-loss.pt", "final.pt", "metrics.jsonl"} <= names
    assert not any("tmp" in n for n in names)
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in records if r["split"] == "train"]
    assert train[-1]["loss"] < train[0]["loss"]
    assert set(train[0]["terms"]) == {"simple", "pruned", "ctc", "attention"}
    assert [r["epoch"] for r in records if r["split"] == "valid"] == [1, 2, 3]
    content = load_checkpoint(final)
    assert content["averaged"] == ["epoch-2.pt", "epoch-3.pt"] and content["train_seconds"] > 5.0
    assert list((tmp_path / "a" / "tensorboard").iterdir())


def test_stopped_anywhere_and_resumed_ends_bit_for_bit_the_same(tmp_path):
    final = load_checkpoint(make_trainer(tmp_path / "whole").run(make_data()))["model"]
    for stop in (1, 4, 6, 11):
        exp_dir = tmp_path / f"stopped-{stop}"
        with pytest.raises(Interrupted, match="SIGINT"):
            make_trainer(exp_dir).run(make_data(on_batch=stop_after(stop)))
        assert (exp_dir / f"checkpoint-{stop}.pt").is_file()
        resumed = load_checkpoint(make_trainer(exp_dir).run(make_data()))["model"]
        for name, value in final.items():
            assert torch.equal(value, resumed[name]), (stop, name)
        steps = [json.loads(line)["step"] for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps) and not list(exp_dir.glob("checkpoint-*.pt"))


def test_killed_between_checkpoints_and_resumed_ends_bit_for_bit_the_same(tmp_path):
    """A crash leaves only the periodic checkpoints; here one of them is cut short as well."""
    final = load_checkpoint(make_trainer(tmp_path / "whole").run(make_data()))["model"]

    class Killed(BaseException):
        pass

    def kill():
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    left = [8]
    with pytest.raises(Killed):
        make_trainer(tmp_path / "b", save_every_n=3).run(make_data(on_batch=kill))
    newest = tmp_path / "b" / "checkpoint-6.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    resumed = load_checkpoint(make_trainer(tmp_path / "b", save_every_n=3).run(make_data()))["model"]
    for name, value in final.items():
        assert torch.equal(value, resumed[name]), name


def test_a_loss_that_is_not_finite_stops_with_the_utterances(tmp_path):
    def poison(batch):
        if batch.cut_ids[0] == "utt-2-0":
            batch.feature[1, 3] = float("nan")

    with pytest.raises(FloatingPointError, match=r"\['utt-2-1'\]"):
        make_trainer(tmp_path / "a").run(make_data(change=poison))


def test_only_the_parts_named_learn_and_frozen_parts_have_no_dropout(tmp_path):
    trainer = make_trainer(tmp_path / "a", train=["attention_decoder"])
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.objective.scales = {"attention": 1.0}
    trainer.run(make_data())
    changed = {n.split(".")[0] for n, v in trainer.model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"attention_decoder"}
    trainer._set_train_mode()
    assert not trainer.model.encoder.training and trainer.model.attention_decoder.training


def test_learning_rate_warms_up_and_decays_to_zero():
    assert learning_rate(0.05, 1.0, 0.1) == pytest.approx(0.5)
    assert learning_rate(0.1, 1.0, 0.1) == pytest.approx(1.0)
    assert learning_rate(0.55, 1.0, 0.1) == pytest.approx(0.5)
    assert learning_rate(1.0, 1.0, 0.1) == 0.0
    assert learning_rate(1.01, 1.0, 0.1) == 0.0
