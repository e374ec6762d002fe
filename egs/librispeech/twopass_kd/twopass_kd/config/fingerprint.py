"""Short hashes of settings, by which finished stages and trained models are recognised."""

import hashlib
import json
from pathlib import Path
from typing import Any

from twopass_kd.config.load import config_to_dict
from twopass_kd.config.schema import Config
from twopass_kd.files.write import state_of_file

# The settings that do not count, from which stage of run.sh on or until which, and why. All others count in all stages:
# one that is forgotten here makes a stage run again, and never keeps what is stale.
_NEVER = {
    "name": "names the folder that has the marker",
    "loss.backend": "either gives the same values",
    "train.num_workers": "is for speed",
    "train.save_every_n": "is for resuming",
    "train.keep_last_k": "is for resuming",
    "train.keep_last_epochs": "is for looking back; the averages need fewer",
    "train.log_interval": "is for reading the log",
    "slurm": "is where jobs run",
}
_NOT_BEFORE = {
    "features": (2, "computes them"),
    "tokens": (2, "makes them; `normalization` is below"),
    **dict.fromkeys(("loss", "train", "teacher"), (3, "trains the teacher")),
    "phases": (3, "trains the first; those of later stages do not count yet"),
    **dict.fromkeys(("student", "external_teacher", "kd", "min_reduction"), (5, "trains the student")),
    "decode": (8, "decodes"),
    "export": (10, "exports"),
}
_NOT_AFTER = {
    "corpus.kind": (2, "the corpus is prepared then"),
    "corpus.max_left_out": (2, "what is left out of the corpus is known by its digest"),
    "corpus.dev_parts": (2, "trainings know their data by its digest; `sets` is below"),
    "corpus.test_parts": (2, "no training reads them; `sets` is below"),
}


def _counted(cfg: Config, stage: int) -> dict[str, Any]:
    """The settings that count in a stage."""
    full = config_to_dict(cfg)
    left_out = [
        *_NEVER,
        *(key for key, (first, _) in _NOT_BEFORE.items() if stage < first),
        *(key for key, (last, _) in _NOT_AFTER.items() if stage > last),
    ]
    for key in left_out:
        *sections, name = key.split(".")
        inside = full
        for section in sections:
            inside = inside.get(section, {})
        inside.pop(name, None)
    return full


def training_settings(cfg: Config) -> dict[str, Any]:
    """The settings shared by all phases that change what is learnt, to recognise a run by."""
    return {key: value for key, value in _counted(cfg, stage=3).items() if key not in ("teacher", "phases")}


def short_hash(content: Any) -> str:
    """16 hexadecimal digits that identify a nest of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(cfg: Config, stage: int) -> str:
    """A short hash of everything in the config that the output of a stage of run.sh depends on.

    A stage's `.done` marker holds it, so that a changed YAML reruns just the stages that it touches.
    """
    keep = _counted(cfg, stage)
    if stage == 1:
        keep["normalization"] = cfg.tokens.normalization
    if stage == 2:
        keep["subsampling_factor"] = max(m.encoder.subsampling_factor for m in (cfg.teacher, cfg.student))
    if stage >= 3:
        keep["phases"] = {name: phase for name, phase in keep["phases"].items() if phase["stage"] <= stage}
    if stage >= 5:
        keep["external_teacher_file"] = _state(cfg.external_teacher.path)
    if stage >= 8:
        keep["arpa_file"] = _state(cfg.decode.arpa)
        keep["sets"] = [cfg.corpus.dev_parts, cfg.corpus.test_parts]
    return short_hash(keep)


def _state(path: str | None) -> list[int] | None:
    """`state_of_file`; None where there is none."""
    return None if path is None or not Path(path).is_file() else state_of_file(Path(path))
