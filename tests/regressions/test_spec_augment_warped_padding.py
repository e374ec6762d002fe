"""SpecAugment's time warp worked on the padded row and pushed speech beyond the utterance's own frames."""

import torch

from tiny import random_batch, tiny_model
from twopass_kd.config.schema import KdConfig, LossConfig, PhaseConfig, TrainConfig
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.objective import Objective
from twopass_kd.training.trainer import Trainer, fix_random_seed


def test_padding_stays_padding(tmp_path):
    model = tiny_model()
    phase = PhaseConfig(stage=3, model="student", train=[], loss_scales={"ctc": 1.0}, num_epochs=1, base_lr=1e-3)
    objective = Objective(model, phase.loss_scales, LossConfig(), KdConfig(), 1, 1)
    trainer = Trainer(model, objective, phase, TrainConfig(max_duration=1), tmp_path, 1, {"phase": "s/p"}, Ranks())
    changed = False
    for step in range(20):
        batch = random_batch(frames=(300, 200), symbols=(3, 3))
        batch.feature[1, 200:] = -100.0
        clean = batch.feature.clone()
        fix_random_seed(1, step)
        trainer._augment(batch, batch.feature_lens)
        # Masks are filled with the row's mean, about -33; speech lies around 0, padding at -100.
        assert (batch.feature[1, 200:] < -20).all()
        assert (batch.feature[1, :200] > -50).all()
        changed = changed or not torch.equal(batch.feature, clean)
    assert changed
