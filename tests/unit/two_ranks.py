"""Run as two ranks by test_distributed.py: each rank takes its share of a batch and saves its gradients."""

import sys
from pathlib import Path

import torch

from tiny import random_batch, tiny_model
from twopass_kd.config.schema import KdConfig, LossConfig, TrainConfig
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.objective import Objective
from twopass_kd.training.optimizer_step import OptimizerStep
from twopass_kd.training.step_split import rank_memory
from twopass_kd.training.trainer import freeze_all_but

SCALES = {"simple": 0.5, "pruned": 1.0, "ctc": 0.3, "transducer_kd": 1.0, "attention": 1.0, "attention_kd": 1.0}
FRAMES, SYMBOLS = (80, 71, 64, 60, 52, 40, 31, 20), (6, 5, 7, 3, 4, 2, 3, 1)


def rows(batch, index):
    """The utterances `index` of a batch, with as much padding as they need."""
    feature_lens, y_lens = batch.feature_lens[index], batch.y_lens[index]
    feature = batch.feature[index, : int(feature_lens.max())]
    return Batch(feature, feature_lens, batch.y[index, : int(y_lens.max())], y_lens, [batch.cuts[i] for i in index])


def gradients(ranks, accum_grad, spoilt=()):
    """Gradients by parameter of the loss over the one batch, this rank's share of it in `accum_grad` batches.

    Args:
      spoilt: utterances whose loss is not finite.
    """
    model = tiny_model(seed=ranks.rank)  # rank 0's must become everybody's
    freeze_all_but(model, model.parts(), list(model.parts()))
    objective = Objective(model, SCALES, LossConfig(), KdConfig(), 1, 1, teacher=tiny_model(seed=5, dim=24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = OptimizerStep(model, objective, optimizer, TrainConfig(ref_duration=1.0, clip_grad_scale=1e9), ranks)
    shares = ranks.world_size * accum_grad
    parts = [list(range(i, len(FRAMES), shares)) for i in range(ranks.rank, shares, ranks.world_size)]
    batch = random_batch(3, FRAMES, SYMBOLS)
    batch.feature[list(spoilt), 3] = float("nan")
    batches = [rows(batch, part) for part in parts]
    lens = sum(int(((batch.feature_lens - 7) // 4 + 1).sum()) for batch in batches)
    step(batches, ranks.sum([lens])[0], step=0)
    assert step.left_out == len(spoilt)
    return {name: p.grad.clone() for name, p in model.named_parameters()}


if __name__ == "__main__":
    ranks = Ranks.from_torchrun()
    folder, accum_grad, *spoilt = sys.argv[1:]
    torch.save(gradients(ranks, int(accum_grad), [int(i) for i in spoilt]), Path(folder) / f"rank{ranks.rank}.pt")
    memory = torch.tensor([rank_memory(ranks), ranks.smallest(ranks.rank + 3.0)], dtype=torch.float64)
    torch.save(memory, Path(folder) / f"memory{ranks.rank}.pt")
    ranks.leave()
