"""Short hashes of settings, by which finished stages and trained models are recognised."""

import hashlib
import json
from pathlib import Path
from typing import Any

from twopass_kd.config.load import config_to_dict, largest_subsampling_factor
from twopass_kd.config.schema import Config
from twopass_kd.files.write import state_of_file

# What does not count, and why; all else counts in all stages, so that a setting that is forgotten here makes too much
# run again, and never keeps what is stale.
NEVER = {
    "name": "of the folder that has the marker",
    "loss.backend": "all give the same values",
    "train.num_workers": "for speed",
    "phases.*.cpu_ranks": "for speed",
    "train.save_every_n": "for resuming",
    "train.keep_last_k": "for resuming",
    "train.keep_last_epochs": "for looking back",
    "train.log_interval": "for reading along",
    "slurm": "where jobs run",
}
NOT_BEFORE = {  # the first stage that reads it
    **dict.fromkeys(("features", "tokens"), 2),
    **dict.fromkeys(("seed", "augment", "loss", "train", "models", "phases"), 3),
    **dict.fromkeys(("external_teacher", "kd", "min_reduction"), 5),
    "decode": 8,
    "decode.bootstrap_samples": 9,
    **dict.fromkeys(("claims", "seeds"), 9),
    "export": 10,
}
NOT_AFTER_STAGE_2 = {
    "corpus.kind": "says how the corpus is made",
    "corpus.max_left_out": "stops a stage or does not",
    "corpus.dev_parts": "trainings know their data by a digest; `sets` has them again",
    "corpus.test_parts": "no training reads them; `sets` has them again",
}


def _counted(cfg: Config, stage: int) -> dict[str, Any]:
    """The settings that count in a stage."""
    full = config_to_dict(cfg)
    late = [key for key, first in NOT_BEFORE.items() if stage < first]
    for key in (*NEVER, *late, *(NOT_AFTER_STAGE_2 if stage > 2 else ())):
        section, _, name = key.rpartition(".")
        insides = full["phases"].values() if section == "phases.*" else [full.get(section, {}) if section else full]
        for inside in insides:
            inside.pop(name, None)
    return full


def training_settings(cfg: Config) -> dict[str, Any]:
    """The settings shared by all phases that change what is learnt, to recognise a run by."""
    return {key: value for key, value in _counted(cfg, stage=3).items() if key not in ("models", "phases")}


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
        keep["subsampling_factor"] = largest_subsampling_factor(cfg)
    if stage >= 3:
        keep["phases"] = {name: phase for name, phase in keep["phases"].items() if phase["stage"] <= stage}
        trained = {phase["model"] for phase in keep["phases"].values()}
        keep["models"] = {name: model for name, model in keep["models"].items() if name in trained}
    if stage >= 5:
        keep["external_teacher_file"] = _state(cfg.external_teacher.path)
    if stage == 9:
        keep["seeds"] = bool(cfg.seeds)  # one seed among several decides no claim
    if stage > 9:  # only stage 9 reads these
        del keep["claims"], keep["seeds"], keep["decode"]["bootstrap_samples"]
    if stage >= 8:
        keep["arpa_file"] = _state(cfg.decode.arpa)
        keep["sets"] = [cfg.corpus.dev_parts, cfg.corpus.test_parts]
    return short_hash(keep)


def _state(path: str | None) -> list[int] | None:
    """`state_of_file`; None where there is none."""
    return None if path is None or not Path(path).is_file() else state_of_file(Path(path))
