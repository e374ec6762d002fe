"""How learning rate, loss scales and augmentation go while a training goes on."""

import math
from collections.abc import Mapping

from twopass_kd.config.schema import AugmentConfig, PhaseConfig, TrainConfig


def learning_rate(progress: float, base_lr: float, warmup_fraction: float) -> float:
    """Linear warm-up, then linear decay to zero; `progress` in [0, 1] is the share of all audio seen."""
    if progress < warmup_fraction:
        return base_lr * progress / warmup_fraction
    return base_lr * max(0.0, 1 - progress) / max(1e-8, 1 - warmup_fraction)


def learning_rate_scale(train: TrainConfig, world_size: int) -> float:
    """What the learning rates are multiplied by for steps of another length than `ref_duration`.

    The square root of the ratio, as Adam's noise asks for (Malladi et al. 2022, arXiv 2205.10287), for steps of
    `world_size * accum_grad * max_duration` seconds; 1 without `max_duration`, when steps are as long as that.
    """
    if train.max_duration is None:
        return 1.0
    return math.sqrt(world_size * train.accum_grad * train.max_duration / train.ref_duration)


def loss_scales(step: int, start: Mapping[str, float], end: Mapping[str, float], warm_step: int) -> dict[str, float]:
    """The scale of each loss term in step `step` (from 0): from `start` in a line to `end`, which `warm_step` has.

    As icefall's recipes do it (Kuang et al. 2022, arXiv 2206.13236): the band that the simple loss chooses for the
    pruned one means nothing yet in the first steps. Terms that `start` does not have keep their scale.
    """
    share = min(1.0, step / warm_step)
    return {term: scale + (start.get(term, scale) - scale) * (1 - share) for term, scale in end.items()}


def epochs_before_augmentation(phase: PhaseConfig, augment: AugmentConfig) -> int:
    """The first epochs of a phase without `init_from`, never all: losses leave their plateau sooner without."""
    return 0 if phase.init_from else min(math.ceil(augment.after * phase.num_epochs), phase.num_epochs - 1)
