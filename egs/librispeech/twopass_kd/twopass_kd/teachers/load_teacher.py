"""The teacher of a phase, loaded and frozen: another phase's final model, or one that was trained elsewhere."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from twopass_kd.data.tokens_file import read_pieces, without_disambiguation
from twopass_kd.files.read import no_content
from twopass_kd.models.checkpoint import CheckpointError, check_finite, final_checkpoint, load_model, weights_digest
from twopass_kd.teachers.load_icefall import files_of, is_torchscript, load_recipe, load_torchscript


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
            teacher = load_teacher(path)
        except CheckpointError as e:
            raise ConfigError(
                f"`external_teacher.path`: {e}. A checkpoint of icefall needs its recipe too "
                "(external_teacher.recipe=ICEFALL/egs/librispeech/ASR/zipformer), or its `export.py --jit 1`"
            ) from e
        if external.tokens is not None and teacher.pieces is not None:
            raise ConfigError(
                f"`external_teacher.tokens` ({external.tokens}) must be left out with {path}, a checkpoint of this"
                " recipe, which has its tokens in itself"
            )
        return teacher if teacher.pieces is not None else replace(teacher, pieces=_named_pieces(external))
    check_finite(model.state_dict(), f"`external_teacher.path` ({path})")
    content = b"".join(file.read_bytes() for file in files_of(path))
    digest = hashlib.sha256(content + external.options.encode()).hexdigest()[:16]
    pieces = _find_pieces(external, model.vocab_size)
    return Teacher(model.requires_grad_(False), model.module, path, digest, model.trained_parts, pieces)


def _named_pieces(external: ExternalTeacherConfig) -> list[str] | None:
    """The tokens in the file that `external_teacher.tokens` names; None where it names none."""
    if external.tokens is None:
        return None
    what = f"`external_teacher.tokens` ({external.tokens})"
    pieces = read_pieces(Path(external.tokens), what, "give the teacher's tokens.txt", ConfigError)
    return without_disambiguation(pieces)


def _find_pieces(external: ExternalTeacherConfig, vocab_size: int) -> list[str] | None:
    """The tokens of a teacher of icefall, out of the `tokens.txt` that is named or lies where icefall leaves it."""
    if external.tokens is not None:
        return _named_pieces(external)
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
