"""Into which batches a step is cut."""

from dataclasses import replace

from twopass_kd.config.schema import Config


def with_batches(cfg: Config, world_size: int) -> Config:
    """The config with `train.max_duration` and `train.accum_grad` as they will be, where they are left to us."""
    if cfg.train.max_duration is not None:
        return cfg
    return replace(cfg, train=replace(cfg.train, max_duration=cfg.train.ref_duration / world_size, accum_grad=1))
