"""The teacher of a phase: loaded, frozen, checked against its student, and a source of initial weights."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from twopass_kd.config.load import config_from_dict
from twopass_kd.config.schema import (
    EXTERNAL_TEACHER,
    Config,
    ConfigError,
    ExternalTeacherConfig,
    FeaturesConfig,
    PhaseConfig,
)
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.data.tokens_file import read_pieces, without_disambiguation
from twopass_kd.files.read import no_content
from twopass_kd.models.checkpoint import CheckpointError, build_model, final_checkpoint, load_model, weights_digest
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.teachers.icefall import files_of, is_torchscript, load_recipe, load_torchscript


@dataclass
class Teacher:
    """A frozen model in eval mode, and what is known of it.

    Attributes:
      model: a `TwoPassModel`, or an `IcefallTransducer`, which has no attention decoder.
      weights: the module whose submodules a student may start from, under the names that ours have.
      digest: 16 hexadecimal digits that identify its weights.
      trained_parts: the parts of a model (`MODEL_PARTS`) that it can teach.
      pieces: its tokens in their order; None where no file says.
      features: what it was trained on; None where no file says.
    """

    model: nn.Module
    weights: nn.Module
    path: Path
    digest: str
    trained_parts: Sequence[str]
    pieces: list[str] | None = None
    features: FeaturesConfig | None = None


def open_teacher(cfg: Config, phase: PhaseConfig, exp_dir: Path, vocab_size: int) -> Teacher:
    """The teacher that a phase names: another phase's final model, or the external one.

    Raises:
      ConfigError, CheckpointError, FileNotFoundError: if there is none, or it is of no kind that can teach.
    """
    if phase.teacher == EXTERNAL_TEACHER:
        return load_external_teacher(cfg.external_teacher, vocab_size, cfg.features.num_mel_bins)
    return load_teacher(final_checkpoint(cfg, exp_dir, phase.teacher))


def load_teacher(path: Path) -> Teacher:
    """Load a teacher from a checkpoint of this recipe; none of its parameters requires a gradient."""
    model, content = load_model(path)
    return Teacher(
        model.requires_grad_(False),
        model,
        Path(path),
        content.get("weights_digest") or weights_digest(model.state_dict()),
        content["trained_parts"],
        content.get("tokens"),
        config_from_dict(content["config"]).features,
    )


def load_external_teacher(external: ExternalTeacherConfig, vocab_size: int, num_mel_bins: int) -> Teacher:
    """Load a teacher that was trained elsewhere: icefall's TorchScript, a recipe with weights, or a checkpoint of ours.

    Args:
      vocab_size, num_mel_bins: of the student.
    Raises:
      ConfigError, CheckpointError: as the loaders say.
    """
    path = Path(external.path)
    if not path.is_file():
        raise ConfigError(f"`external_teacher.path` ({path}) must be a file; correct it")
    problem = no_content(path)
    if problem:
        raise ConfigError(f"`external_teacher.path` ({path}) {problem}")
    if external.recipe is not None:
        model = load_recipe(Path(external.recipe), path, external.options, vocab_size, num_mel_bins)
    elif is_torchscript(path):
        model = load_torchscript(path, num_mel_bins)
    else:
        try:
            return load_teacher(path)
        except CheckpointError as e:
            raise ConfigError(
                f"`external_teacher.path`: {e}. A checkpoint of icefall needs its recipe too "
                "(external_teacher.recipe=ICEFALL/egs/librispeech/ASR/zipformer), or its `export.py --jit 1`"
            ) from e
    content = b"".join(file.read_bytes() for file in files_of(path))
    digest = hashlib.sha256(content + external.options.encode()).hexdigest()[:16]
    pieces = _find_pieces(external, model.vocab_size)
    return Teacher(model.requires_grad_(False), model.module, path, digest, model.trained_parts, pieces)


def _find_pieces(external: ExternalTeacherConfig, vocab_size: int) -> list[str] | None:
    """The tokens of a teacher of icefall, out of the `tokens.txt` that is named or lies where icefall leaves it."""
    if external.tokens is not None:
        what = f"`external_teacher.tokens` ({external.tokens})"
        pieces = read_pieces(Path(external.tokens), what, "give the teacher's tokens.txt", ConfigError)
        return without_disambiguation(pieces)
    near = []
    for path in (Path(external.path).absolute(), Path(external.path).resolve()):  # beside a link, then where it leads
        near.append(path.with_name("tokens.txt"))
        near += [p for above in list(path.parents)[1:3] for p in sorted(above.glob("data/lang_bpe_*/tokens.txt"))]
    for path in near:
        if not path.is_file():
            continue
        try:
            pieces = without_disambiguation(read_pieces(path, str(path), "name another: external_teacher.tokens"))
        except ValueError as e:
            logging.warning("not taken for the teacher's tokens: %s", e)
            continue
        if len(pieces) == vocab_size:
            logging.info("tokens of the teacher: %s", path)
            return pieces
    logging.warning(
        "no tokens.txt of %d tokens near %s, so that it cannot be checked that the teacher's tokens are the student's;"
        " name it: external_teacher.tokens=.../tokens.txt", vocab_size, external.path
    )  # fmt: skip
    return None


def check_sizes(cfg: Config, vocab_size: int) -> None:
    """The student of a config must be as small as its `min_reduction` promises; known before anything is trained.

    Raises:
      ConfigError: with both sizes.
    """
    if cfg.external_teacher.path is None:
        big, small = (
            build_model(cfg, which, vocab_size).deployed_parameters()["total"] for which in ("teacher", "student")
        )
        _check_reduction(cfg, big, small)


def _check_reduction(cfg: Config, big: int, small: int) -> None:
    if small > (1 - cfg.min_reduction) * big:
        raise ConfigError(
            f"`student` ({small:,} deployed parameters) must be at least {cfg.min_reduction:.0%} smaller than the "
            f"teacher ({big:,}), but is {1 - small / big:.1%} smaller; shrink `student` or lower `min_reduction`"
        )


def check_tokens(teacher: Teacher, tokens: Tokenizer) -> None:
    """A teacher must have the tokens of the data. Raises ConfigError with what both sides have."""
    if teacher.model.vocab_size != tokens.vocab_size:
        raise ConfigError(
            f"teacher {teacher.path} has {teacher.model.vocab_size} tokens, this lang_dir {tokens.vocab_size}; use the "
            "teacher's tokens.txt and bpe.model, and set `tokens.vocab_size`"
        )
    if teacher.pieces is not None and teacher.pieces != tokens.pieces:
        differing = [(i, *pair) for i, pair in enumerate(zip(teacher.pieces, tokens.pieces)) if pair[0] != pair[1]]
        example = ", token {} is {!r} there and {!r} here".format(*differing[0]) if differing else ""
        raise ConfigError(
            f"teacher {teacher.path} was trained with other tokens ({len(teacher.pieces)}) than this lang_dir has "
            f"({len(tokens.pieces)}){example}; use the teacher's tokens.txt and bpe.model, or train a teacher on these"
        )


def check_teacher(teacher: Teacher, student: TwoPassModel, cfg: Config, phase: PhaseConfig, tokens: Tokenizer) -> None:
    """Distillation needs equal tokens, frame rate and features on both sides, and a teacher that was trained.

    Raises:
      ConfigError: saying what both sides have.
    """
    check_tokens(teacher, tokens)
    sides = {
        "subsampling_factor": (teacher.model.encoder.subsampling_factor, student.encoder.subsampling_factor),
    }
    if teacher.features is not None:
        for key in ("num_mel_bins", "sampling_rate"):
            sides[f"features.{key}"] = (getattr(teacher.features, key), getattr(cfg.features, key))
    for name, (theirs, ours) in sides.items():
        if theirs != ours:
            raise ConfigError(f"`{name}`: teacher {teacher.path} has {theirs}, the student {ours}; they must be equal")
    needed = []
    if phase.loss_scales.get("transducer_kd", 0) > 0:
        needed += ["encoder", "decoder", "joiner"] + (["simple_heads"] if cfg.kd.band == "teacher" else [])
    if phase.loss_scales.get("attention_kd", 0) > 0:
        needed += ["encoder", "attention_decoder"]
    untrained = [part for part in needed if part not in teacher.trained_parts]
    if untrained:
        raise ConfigError(
            f"teacher {teacher.path} was never trained in {', '.join(untrained)}, which this phase distils from; "
            "name a later phase of the teacher"
        )
    if phase.teacher == EXTERNAL_TEACHER:
        # A transducer is compared with the student's transducer.
        big, small = teacher.model.deployed_parameters(), student.deployed_parameters()
        parts = [part for part, size in big.items() if size > 0 and part != "total"]
        _check_reduction(cfg, big["total"], sum(small[part] for part in parts))


def without_attention_kd(phase: PhaseConfig, teacher: Teacher) -> dict[str, float]:
    """The phase's loss scales; without `attention_kd` where an external teacher has no attention decoder.

    Raises:
      ConfigError: if nothing is left for the attention decoder to learn from.
    """
    scales = dict(phase.loss_scales)
    if phase.teacher != EXTERNAL_TEACHER or "attention_decoder" in teacher.trained_parts:
        return scales
    if scales.pop("attention_kd", 0) > 0 and not scales.get("attention", 0) > 0:
        raise ConfigError(
            f"`loss_scales` of this phase must have `attention`, since teacher {teacher.path} has no attention "
            "decoder to distil from"
        )
    return scales


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
