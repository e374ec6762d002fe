"""Checkpoints: written whole or not at all, read without running code, made into the model that they hold.

Which of a training's checkpoints it goes on from, and which it keeps, is in training/checkpoint_files.py.
"""

import errno
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from twopass_kd.config.load import config_from_dict, experiment_folder
from twopass_kd.config.schema import Config
from twopass_kd.files.json_model import JsonModel, describe_problem
from twopass_kd.files.layout import final_path
from twopass_kd.files.read import no_content
from twopass_kd.models.two_pass import TwoPassModel


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read, and what to do."""


class _Texts(JsonModel):
    trained_parts: list[str]
    tokens: list[str] = []


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write `content` to a temporary file, then rename, so that an older `path` survives any failure.

    Raises:
      CheckpointError: if the disk is full or not writable; no partial file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb", buffering=0) as f:
            writer = _Writer(f)
            torch.save(_pack_floats(content), writer)
            if writer.error is not None:
                raise writer.error
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path} ({e}); older checkpoints are intact. Free disk space, then run the same command again"
        ) from e


def _pack_floats(x: Any) -> Any:
    """Floats become 0-dim float64 tensors: the `weights_only` reader of torch 1.13 knows no floats."""
    if isinstance(x, float):
        return torch.tensor(x, dtype=torch.float64)
    if isinstance(x, dict):
        return type(x)((k, _pack_floats(v)) for k, v in x.items())
    return [_pack_floats(v) for v in x] if isinstance(x, (list, tuple)) else x


def _unpack_floats(x: Any) -> Any:
    if isinstance(x, Tensor) and x.dtype == torch.float64 and x.dim() == 0:
        return float(x)
    if isinstance(x, dict):
        return {k: _unpack_floats(v) for k, v in x.items()}
    return [_unpack_floats(v) for v in x] if isinstance(x, list) else x


class _Writer(io.RawIOBase):
    """Keeps the first error of a file for later: an exception inside torch's zip writer aborts the whole process."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += self.file.write(view[done:])
            except OSError as e:
                self.error = e
        return len(view)


def load_checkpoint(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint on the CPU with `weights_only`, so that a file from outside cannot run code.

    Args:
      needed: entries that it must have beside `model` and `config`.
    Raises:
      CheckpointError: if the file is missing, cut short or no checkpoint of this recipe.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"checkpoint ({path}) must be a file, not a folder, e.g. {path / 'final.pt'}")
    if not path.is_file():
        raise CheckpointError(f"checkpoint ({path}) must exist; train its phase first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # zipfile, pickle and torch errors have no common base
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # which a reader raises that seeks before the file
            raise CheckpointError(f"{path} cannot be read ({e.strerror or e}); make it readable") from e
        problem = no_content(path)
        why = f": it {problem}" if problem else f" ({type(e).__name__})"
        raise CheckpointError(f"{path} is cut short or not a checkpoint{why}") from e
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("model", "config")):
        raise CheckpointError(f"{path} must be a checkpoint of this recipe, with at least `model` and `config`")
    missing = [key for key in needed if key not in content]
    if missing:
        raise CheckpointError(
            f"{path} must be a checkpoint of this version of the recipe, but has no {', '.join(missing)}; train again"
        )
    weights = content.pop("model")
    return {"model": weights, **_unpack_floats(content)}


def build_model(cfg: Config, which: str, vocab_size: int) -> TwoPassModel:
    """The model that `which` names in the config, with fresh weights."""
    return TwoPassModel(cfg.models[which], cfg.features.num_mel_bins, vocab_size)


def load_model(path: Path) -> tuple[TwoPassModel, dict[str, Any]]:
    """Rebuild a model from a checkpoint alone: the architecture is read from it.

    Returns:
      The model in eval mode, and the checkpoint's other entries.
    Raises:
      CheckpointError: as `load_checkpoint`; if its weights are not of its architecture, or not finite.
    """
    content = load_checkpoint(path, ["phase", "vocab_size", "identity", "tokens_digest", "trained_parts"])
    try:
        _Texts.model_validate(content)
    except ValidationError as e:
        name, what = describe_problem(e)
        raise CheckpointError(f"{path} must be as this recipe wrote it: `{name}` {what}; train its phase again") from e
    weights = content.pop("model")
    try:
        cfg = config_from_dict(content["config"])
        model = build_model(cfg, cfg.phases[content["phase"]].model, content["vocab_size"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{path} must be a model that this version of the recipe trained ({e!r})") from e
    check_finite(weights, str(path))
    return model.eval(), content


def check_finite(weights: dict[str, Tensor], what: str) -> None:
    """Refuse weights with NaN or infinity, with which a model says nothing or nonsense, and says so nowhere.

    Raises:
      CheckpointError: naming `what`, the file, and the first such tensor.
    """
    bad = [name for name, value in weights.items() if not value.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{what} must have finite weights, but {bad[0]} is not ({len(bad)} of {len(weights)} tensors);"
            " take an earlier checkpoint, or train again with a lower base_lr"
        )


def weights_digest(weights: dict[str, Tensor]) -> str:
    """16 hexadecimal digits that identify the parameters of a model, bit for bit."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def final_checkpoint(cfg: Config, exp_dir: Path, phase: str) -> Path:
    """Where the finished model of a phase is.

    Raises:
      FileNotFoundError: naming the stage that makes it.
    """
    path = final_path(experiment_folder(cfg, exp_dir), phase)
    if not path.is_file():
        stage = cfg.phases[phase].stage
        raise FileNotFoundError(
            f"{path} is missing; stage {stage} makes it: ./run.sh --stage {stage} --stop-stage {stage}"
        )
    return path
