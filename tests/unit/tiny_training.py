"""What tests train: a tiny model on a few random batches."""

import copy
import os
import signal
from dataclasses import asdict

import torch

from tiny import random_batch, tiny_model
from two_ranks import SCALES
from twopass_kd.config.schema import KdConfig, LossConfig, PhaseConfig, TrainConfig
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.objective import Objective
from twopass_kd.training.optimizer_step import OptimizerStep
from twopass_kd.training.trainer import Data, Trainer, freeze_all_but

BATCHES = 4


PARTS = ["encoder", "decoder", "joiner", "attention_decoder", "simple_heads", "ctc_head"]


def make_data(on_batch=None, change=None):
    batches = [random_batch(seed) for seed in range(BATCHES)]

    def train_loader(epoch, skip):
        order = torch.randperm(BATCHES, generator=torch.Generator().manual_seed(epoch)).tolist()
        for i in order[skip:]:
            batch = copy.deepcopy(batches[i])
            if change is not None:
                change(batch)
            if on_batch is not None:
                on_batch()
            yield batch

    return Data(train_loader, lambda: [random_batch(99)], sum(b.duration for b in batches))


def make_trainer(exp_dir, train=PARTS, **settings):
    """A trainer of three epochs; `settings` are of the phase or of `train`."""
    exp_dir.mkdir(exist_ok=True)
    defaults = {
        "stage": 3,
        "model": "student",
        "train": train,
        "loss_scales": {"simple": 0.5, "pruned": 1.0, "ctc": 0.3, "attention": 1.0},
        "num_epochs": 3,
        "base_lr": 3e-3,
        "average": 2,
    }
    of_phase = {key: value for key, value in settings.items() if key in PhaseConfig.__dataclass_fields__}
    phase = PhaseConfig(**{**defaults, **of_phase})
    model = tiny_model(dropout=0.2)
    freeze_all_but(model, model.parts(), train)
    objective = Objective(model, phase.loss_scales, LossConfig(), KdConfig(), sos_id=1, eos_id=1)
    of_training = {key: value for key, value in settings.items() if key not in of_phase}
    cfg = TrainConfig(ref_duration=1, max_duration=1, log_interval=2, **of_training)
    config = {"phases": {"s/p": asdict(phase)}, "train": asdict(cfg), "kd": asdict(KdConfig())}
    metadata = {
        "config": config,
        "phase": "s/p",
        "identity": "x",
        "train_seconds_before": 5.0,
        "updates_before": 7,
        "environment": {},
    }
    return Trainer(model, objective, phase, cfg, exp_dir, seed=7, metadata=metadata, ranks=Ranks())


def stop_after(count):
    """A callback that sends SIGINT to this process while batch `count` is being trained on."""
    left = [count]

    def on_batch():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    return on_batch


def make_step(objective_type=Objective, ranks=None, **train):
    model = tiny_model()
    objective = objective_type(model, SCALES, LossConfig(), KdConfig(), 1, 1, teacher=tiny_model(seed=5, dim=24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = TrainConfig(ref_duration=1.0, **{"clip_grad_scale": 1e9, **train})
    return model, OptimizerStep(model, objective, optimizer, settings, ranks or Ranks())
