"""Where a model of a phase starts from: the phase before it, its teacher, or chance."""

import logging
from pathlib import Path

import torch
from torch import nn

from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.models.checkpoint import CheckpointError, final_checkpoint, load_checkpoint
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.teachers.load_teacher import Teacher


def initialise(
    model: TwoPassModel, cfg: Config, name: str, exp_dir: Path, teacher: Teacher | None, data: AsrDataModule
) -> None:
    """Give `model`, whose weights are fresh, what the phase `name` starts from.

    Raises:
      CheckpointError, FileNotFoundError: if the phase before is not trained, or is of another architecture.
    """
    phase = cfg.phases[name]
    if phase.init_from is not None:
        path = final_checkpoint(cfg, exp_dir, phase.init_from)
        try:
            model.load_state_dict(load_checkpoint(path)["model"])
        except (RuntimeError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{path} does not fit this model: {e}") from e
        logging.info("starting from %s", phase.init_from)
        return
    model.encoder.mvn.set_statistics(*data.feature_statistics())
    if phase.copy_from_teacher and teacher is not None:
        copied = copy_matching_weights(teacher.weights, model)
        logging.info("copied from the teacher: %s", ", ".join(copied) or "nothing, no shapes agree")


@torch.no_grad()
def copy_matching_weights(teacher: nn.Module, student: nn.Module) -> list[str]:
    """Start `student` from `teacher` wherever the shapes agree.

    A module is copied when all of its own parameters and buffers agree in shape; a bias without its weight is not.

    Returns:
      The names of the modules copied, for the log.
    """
    source = dict(teacher.named_modules())
    copied = []
    for name, module in student.named_modules():
        ours = _own_tensors(module)
        theirs = _own_tensors(source[name]) if name in source else {}
        if ours and {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}:
            for key, value in ours.items():
                value.copy_(theirs[key])
            copied.append(name)
    return copied


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
