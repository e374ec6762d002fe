"""Short hashes of settings, by which finished stages and trained models are recognised."""

import hashlib
import json
from pathlib import Path
from typing import Any

from twopass_kd.config.load import config_to_dict
from twopass_kd.config.schema import Config
from twopass_kd.files.write import state_of_file

# What the parameters of a trained model depend on; the other keys of these sections are bookkeeping.
_CORPUS_TRAINED_ON = ("train_parts", "min_duration", "max_duration", "speed_perturb", "musan", "synthesis")
_TRAIN_MATTERS = ("max_duration", "num_buckets", "betas", "weight_decay", "clip_grad_norm", "warmup_fraction",
                  "cache_frozen_encoders", "accum_grad", "precision")  # fmt: skip


def training_settings(cfg: Config) -> dict[str, Any]:
    """The settings shared by all phases that change what is learnt, to recognise a run by."""
    full = config_to_dict(cfg)
    return {
        **{key: full[key] for key in ("seed", "features", "tokens")},
        "loss": {key: value for key, value in full["loss"].items() if key != "backend"},  # the same values from either
        "corpus": {key: full["corpus"][key] for key in _CORPUS_TRAINED_ON},
        "train": {key: full["train"][key] for key in _TRAIN_MATTERS},
    }


def short_hash(content: Any) -> str:
    """16 hexadecimal digits that identify a nest of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(cfg: Config, stage: int) -> str:
    """A short hash of everything in the config that the output of a stage of run.sh depends on.

    A stage's `.done` marker holds it, so that a changed YAML reruns just the stages that it touches.
    """
    full = config_to_dict(cfg)
    if stage <= 2:
        keep: dict[str, Any] = {"seed": full["seed"], "corpus": full["corpus"]}
        if stage == 1:
            keep.update(normalization=full["tokens"]["normalization"])
        if stage == 2:
            factors = [getattr(cfg, which).encoder.subsampling_factor for which in ("teacher", "student")]
            keep.update(features=full["features"], tokens=full["tokens"], subsampling_factor=max(factors))
        return short_hash(keep)
    keep = {**training_settings(cfg), "teacher": full["teacher"]}
    keep["phases"] = {k: p for k, p in full["phases"].items() if p["stage"] <= stage}
    if stage >= 5:
        keep["external_teacher_file"] = _state(cfg.external_teacher.path)
        keep.update({k: full[k] for k in ("student", "external_teacher", "kd", "min_reduction")})
    if stage >= 8:
        keep["arpa_file"] = _state(cfg.decode.arpa)
        keep.update(decode=full["decode"], sets=[full["corpus"]["dev_parts"], full["corpus"]["test_parts"]])
    if stage >= 10:
        keep.update(export=full["export"])
    return short_hash(keep)


def _state(path: str | None) -> list[int] | None:
    """`state_of_file`; None where there is none."""
    return None if path is None or not Path(path).is_file() else state_of_file(Path(path))
