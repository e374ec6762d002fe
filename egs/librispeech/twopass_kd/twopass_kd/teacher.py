"""The teacher of a phase: loaded, frozen, checked against its student, and a source of initial weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

import torch
from torch import nn

from twopass_kd.checkpoint import build_model, load_model
from twopass_kd.config import Config, ConfigError, PhaseConfig, config_from_dict
from twopass_kd.model import TwoPassModel


@dataclass
class Teacher:
    """A frozen model in eval mode, and what its checkpoint says of it."""

    model: TwoPassModel
    path: Path
    content: Dict[str, Any]

    @property
    def config(self) -> Config:
        return config_from_dict(self.content["config"])


def load_teacher(path: Path) -> Teacher:
    """Load a teacher from a checkpoint of this recipe; none of its parameters requires a gradient."""
    model, content = load_model(path)
    return Teacher(model.requires_grad_(False), Path(path), content)


def check_sizes(cfg: Config, vocab_size: int) -> None:
    """The student of a config must be as small as its `min_reduction` promises; known before anything is trained.

    Raises:
      ConfigError: with both sizes.
    """
    big, small = (
        build_model(cfg, which, vocab_size).deployed_parameters()["total"] for which in ("teacher", "student")
    )
    if small > (1 - cfg.min_reduction) * big:
        raise ConfigError(
            f"`student` ({small:,} deployed parameters) must be at least {cfg.min_reduction:.0%} smaller than the "
            f"teacher ({big:,}), but is {1 - small / big:.1%} smaller; shrink `student` or lower `min_reduction`"
        )


def check_teacher(teacher: Teacher, student: TwoPassModel, cfg: Config, phase: PhaseConfig, tokens_digest: str) -> None:
    """Distillation needs equal tokens, frame rate and features on both sides, and a teacher that was trained.

    Raises:
      ConfigError: saying what both sides have.
    """
    if teacher.content["tokens_digest"] != tokens_digest:
        raise ConfigError(
            f"teacher {teacher.path} was trained with other tokens ({teacher.content['tokens_digest']}) than this "
            f"lang_dir has ({tokens_digest}); use the teacher's tokens.txt and bpe.model, or train a teacher on these"
        )
    sides = {
        "subsampling_factor": (teacher.model.encoder.subsampling_factor, student.encoder.subsampling_factor),
        "features.num_mel_bins": (teacher.config.features.num_mel_bins, cfg.features.num_mel_bins),
        "features.sampling_rate": (teacher.config.features.sampling_rate, cfg.features.sampling_rate),
    }
    for name, (theirs, ours) in sides.items():
        if theirs != ours:
            raise ConfigError(f"`{name}`: teacher {teacher.path} has {theirs}, the student {ours}; they must be equal")
    needed = []
    if phase.loss_scales.get("transducer_kd", 0) > 0:
        needed += ["encoder", "decoder", "joiner"] + (["simple_heads"] if cfg.kd.band == "teacher" else [])
    if phase.loss_scales.get("attention_kd", 0) > 0:
        needed += ["encoder", "attention_decoder"]
    untrained = [part for part in needed if part not in teacher.content["trained_parts"]]
    if untrained:
        raise ConfigError(
            f"teacher {teacher.path} was never trained in {', '.join(untrained)}, which this phase distils from; "
            "name a later phase of the teacher"
        )


@torch.no_grad()
def copy_matching_weights(teacher: nn.Module, student: nn.Module) -> List[str]:
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


def _own_tensors(module: nn.Module) -> Dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
