"""The training loop: exact resume at any step, what is left on disk, NaN and interruption."""

import copy
import json
import math
import os
import signal

import pytest
import torch

from tiny_training import make_data, make_trainer, stop_after
from twopass_kd.config.schema import AugmentConfig, LossConfig, TrainConfig
from twopass_kd.models.checkpoint import load_checkpoint
from twopass_kd.training.objective import Objective
from twopass_kd.training.schedules import epochs_before_augmentation, learning_rate, learning_rate_scale, loss_scales
from twopass_kd.training.trainer import Interrupted


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
    assert content["averaged_steps"] == 8 and content["train_seconds"] > 5.0
    assert content["updates"] == content["step"] + 7
    assert content["left_out"] == 0 and content["changes"] == []
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


def test_a_signal_that_comes_again_after_the_state_is_saved_hides_nothing(tmp_path):
    """Slurm signals every process, and those that wait for others pass it on."""
    with pytest.raises(Interrupted, match="state saved at step 4"):
        make_trainer(tmp_path).run(make_data(on_batch=stop_after(4)))
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)


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


def nan_in(*cut_ids):
    """A change of batches that makes the loss of these utterances not finite."""

    def change(batch):
        for row, cut_id in enumerate(batch.cut_ids):
            if cut_id in cut_ids:
                batch.feature[row, 3] = float("nan")

    return change


def test_an_utterance_whose_loss_is_not_finite_is_left_out_and_counted(tmp_path, caplog):
    final = make_trainer(tmp_path / "a").run(make_data(change=nan_in("utt-2-1")))
    content = load_checkpoint(final)
    assert content["left_out"] == 3  # once an epoch
    assert all(value.isfinite().all() for value in content["model"].values())
    lines = [record.message for record in caplog.records if "not finite" in record.message]
    assert len(lines) == 3 and all("['utt-2-1']; left out" in line for line in lines)
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert records[-2]["left_out"] == 3 and math.isfinite(records[-2]["loss"])


def test_losses_that_stay_not_finite_stop_with_the_utterances(tmp_path):
    def poison(batch):
        batch.feature[1, 3] = float("nan")

    with pytest.raises(FloatingPointError, match=r"at step 10, here \['utt-\d-1'\].*10 steps before.*base_lr"):
        make_trainer(tmp_path / "a").run(make_data(change=poison))


def test_only_what_is_changeable_changes_on_resumption_and_is_told(tmp_path, caplog):
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "a").run(make_data(on_batch=stop_after(5)))
    trainer = make_trainer(tmp_path / "a", clip_grad_scale=7.0)
    content = load_checkpoint(trainer.run(make_data()))
    change = {"step": 5, "key": "train.clip_grad_scale", "before": 2.0, "now": 7.0}
    assert content["changes"] == [change]
    assert "from step 5 on, `train.clip_grad_scale` is 7.0; it was 2.0" in caplog.text


def test_the_running_mean_is_of_the_last_epochs_parameters(tmp_path):
    seen = []
    trainer = make_trainer(tmp_path / "a", average=1.5)
    update = trainer.averaged.update_parameters
    trainer.averaged.update_parameters = lambda model: (
        update(model),
        seen.append(copy.deepcopy(model.state_dict())),
    )
    content = load_checkpoint(trainer.run(make_data()))
    assert 5 <= len(seen) <= 7 and content["averaged_steps"] == len(seen)
    for name, value in content["model"].items():
        mean = torch.stack([state[name].double() for state in seen]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)


def test_without_an_average_the_last_parameters_are_final(tmp_path):
    trainer = make_trainer(tmp_path / "a", average=0.0)
    content = load_checkpoint(trainer.run(make_data()))
    assert content["averaged_steps"] == 0
    assert all(torch.equal(value, content["model"][name]) for name, value in trainer.model.state_dict().items())


def test_only_the_parts_named_learn_and_frozen_parts_have_no_dropout(tmp_path):
    trainer = make_trainer(tmp_path / "a", train=["attention_decoder"], loss_scales={"attention": 1.0})
    before = copy.deepcopy(trainer.model.state_dict())
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


@pytest.mark.parametrize("ranks, accum_grad, duration, scale", [(1, 1, 600, 1), (4, 2, 75, 1), (8, 1, 300, 2)])
def test_learning_rate_goes_with_the_root_of_the_seconds_of_a_step(ranks, accum_grad, duration, scale):
    train = TrainConfig(ref_duration=600, max_duration=duration, accum_grad=accum_grad)
    assert learning_rate_scale(train, ranks) == pytest.approx(scale)
    assert learning_rate_scale(TrainConfig(ref_duration=600), ranks) == 1.0


@pytest.mark.parametrize(
    "num_epochs, after, init_from, epochs",
    [
        (20, 0.1, None, 2),
        (4, 0.1, None, 1),
        (4, 0.0, None, 0),
        (20, 0.1, "s/before", 0),
        (1, 0.1, None, 0),
        (5, 0.9, None, 4),
    ],
)
def test_the_first_epochs_of_a_phase_that_starts_from_nothing_are_not_augmented(
    tmp_path, num_epochs, after, init_from, epochs
):
    phase = make_trainer(tmp_path / "a", num_epochs=num_epochs, init_from=init_from).phase
    assert epochs_before_augmentation(phase, AugmentConfig(after=after)) == epochs


def test_loss_scales_go_in_a_line_from_start_to_end():
    start, end = {"simple": 1.0, "pruned": 0.1}, {"simple": 0.5, "pruned": 1.0, "ctc": 0.2}
    assert loss_scales(0, start, end, 2000) == pytest.approx({"simple": 1.0, "pruned": 0.1, "ctc": 0.2})
    assert loss_scales(1000, start, end, 2000) == pytest.approx({"simple": 0.75, "pruned": 0.55, "ctc": 0.2})
    assert loss_scales(2000, start, end, 2000) == loss_scales(10**6, start, end, 2000) == pytest.approx(end)


def test_loss_scales_ramp_while_training_and_are_whole_on_dev(tmp_path, monkeypatch):
    seen = {"train": [], "dev": []}

    def spy(self, batch, **options):
        seen["train" if self.model.training else "dev"].append(self.scales["pruned"])
        return call(self, batch, **options)

    call = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", spy)
    make_trainer(tmp_path / "a", start_scales={"pruned": 0.2}, warm_step=4).run(make_data())
    assert seen["train"][:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0]) and set(seen["dev"]) == {1.0}


@pytest.mark.parametrize("init_from, off", [(None, 4), ("s/before", 0)])
def test_delay_penalty_waits_for_the_warm_up_of_a_phase_that_starts_from_nothing(tmp_path, monkeypatch, init_from, off):
    seen = {"train": [], "dev": []}

    def spy(self, batch, **options):
        seen["train" if self.model.training else "dev"].append(self.delay_penalty)
        return call(self, batch, **options)

    call = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", spy)
    trainer = make_trainer(tmp_path / "a", init_from=init_from, warm_step=4)
    trainer.objective.loss = LossConfig(delay_penalty=0.01)
    trainer.run(make_data())
    assert seen["train"] == [0.0] * off + [0.01] * (len(seen["train"]) - off) and len(seen["train"]) > 6
    assert set(seen["dev"]) == {0.0}
