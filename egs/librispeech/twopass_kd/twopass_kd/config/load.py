"""The experiment config: typed dataclasses, strict YAML, `key=value` overrides.

One YAML describes one experiment. A key that is not a field of these dataclasses, a value of the wrong
type and a reference to a phase that does not exist are errors; nothing is skipped or guessed.
The dataclasses are in config/schema.py. Neither imports torch or k2, so that the shell can ask questions cheaply.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from twopass_kd.config.names import check_names
from twopass_kd.config.schema import (
    EXTERNAL_TEACHER,
    LOSS_TERMS,
    MODEL_PARTS,
    SEARCHES,
    Config,
    ConfigError,
    PhaseConfig,
    SynthesisConfig,
)
from twopass_kd.config.text import parse_override, read_files, typed
from twopass_kd.config.values import check_values, value_of
from twopass_kd.files.write import write_text_atomically

_SLURM_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED")
_SLURM_MEM = re.compile(r"\d+[KMGT]?")
# The loss terms that give a part of the model its gradient.
_REACHED_BY = {
    "encoder": LOSS_TERMS,
    "decoder": ("simple", "pruned", "transducer_kd"),
    "joiner": ("pruned", "transducer_kd"),
    "simple_heads": ("simple",),
    "ctc_head": ("ctc",),
    "attention_decoder": ("attention", "attention_kd"),
}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides and check the whole.

    Args:
      path: the YAML file. Its `name` defaults to the file's stem; `base: other.yaml` takes all that it does not
        say itself from a file beside it.
      overrides: e.g. `["train.max_duration=20", "phases.student/rnnt_kd.num_epochs=1"]`.
    Returns:
      A plain `Config` (no OmegaConf objects inside).
    Raises:
      ConfigError: naming the key, what is wrong with it and what would be right.
    """
    path = Path(path)
    settings = [*read_files(path), *map(parse_override, overrides)]
    return _build(settings, default_name=path.stem, source=str(path))


def config_from_dict(resolved: dict[str, Any]) -> Config:
    """The inverse of `config_to_dict`: rebuild a `Config` out of a checkpoint or a saved `config.yaml`."""
    return _build([typed(resolved, where="saved config: ")], default_name="", source="saved config")


def config_to_dict(cfg: Config) -> dict[str, Any]:
    """A plain nested dict of `cfg`, as stored in checkpoints."""
    return asdict(cfg)


def config_to_yaml(cfg: Config) -> str:
    """The resolved config as a YAML file has it."""
    return yaml.safe_dump(asdict(cfg), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def save_config(cfg: Config, path: Path) -> None:
    """Write the resolved config as YAML."""
    write_text_atomically(Path(path), config_to_yaml(cfg))


def _build(settings: Sequence[dict[str, Any]], default_name: str, source: str) -> Config:
    """The defaults under `settings`, whose values are typed; the last ones win."""
    merged = OmegaConf.merge(OmegaConf.structured(Config), *map(_literal, settings))
    if OmegaConf.is_missing(merged, "name"):
        merged.name = _literal(default_name)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"{source}: these keys must be given: {', '.join(missing)}")
    cfg: Config = OmegaConf.to_object(merged)
    external = cfg.external_teacher
    if external.path is not None:
        _replace_teacher(cfg)
    elif external.recipe or external.options or external.tokens:
        raise ConfigError("`external_teacher.path` must be given with its other keys (run.sh: --teacher FILE)")
    if external.options and external.recipe is None:
        raise ConfigError("`external_teacher.recipe` must be given with `external_teacher.options`, which are its")
    _validate(cfg)
    return cfg


def _replace_teacher(cfg: Config) -> None:
    """Leave out the phases that train a teacher; those that learn from one learn from the external one."""
    own = [name for name, phase in cfg.phases.items() if phase.model == "teacher"]
    for name in own:
        del cfg.phases[name]
    for phase in cfg.phases.values():
        if phase.teacher in own:
            phase.teacher = EXTERNAL_TEACHER


def _literal(value: Any) -> Any:
    """`value` with its text such that OmegaConf takes `${x}` for text and not for another key's value."""
    if isinstance(value, dict):
        return {key: _literal(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_literal(v) for v in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _validate(cfg: Config) -> None:
    check_names(cfg)
    check_values(cfg)
    for key in ("corpus.train_parts", "corpus.dev_parts", "corpus.test_parts", "decode.rescore_weights",
                "decode.length_rewards"):  # fmt: skip
        if not value_of(cfg, key):
            raise ConfigError(f"`{key}` must have at least one entry")
    if cfg.loss.prune_range < 2:
        raise ConfigError(f"`loss.prune_range` ({cfg.loss.prune_range}) must be at least 2")
    for which in ("teacher", "student"):
        attention = getattr(cfg, which).attention_decoder
        if attention.dim % attention.num_heads:
            raise ConfigError(
                f"`{which}.attention_decoder.dim` ({attention.dim}) must be a multiple of its num_heads "
                f"({attention.num_heads})"
            )
    if cfg.corpus.kind == "mini" and cfg.corpus.synthesis is None:
        cfg.corpus.synthesis = SynthesisConfig()
    if cfg.corpus.musan and cfg.train.cache_frozen_encoders:
        raise ConfigError("`train.cache_frozen_encoders` (true) must be false with `corpus.musan`: noise varies")
    reported: dict[str, str] = {}
    for name, phase in cfg.phases.items():
        _validate_phase(cfg, name, phase)
        if phase.report_as:
            if phase.report_as in reported:
                raise ConfigError(
                    f"`phases.{name}.report_as` ({phase.report_as}) must be unique; "
                    f"{reported[phase.report_as]} has it too"
                )
            reported[phase.report_as] = name
    for kind in ("cpu", "gpu"):
        job = getattr(cfg.slurm, kind)
        if not _SLURM_TIME.fullmatch(job.time):
            raise ConfigError(f"`slurm.{kind}.time` ({job.time}) must be as sbatch takes it, e.g. 24:00:00 or 2-00")
        if not _SLURM_MEM.fullmatch(job.mem):
            raise ConfigError(f"`slurm.{kind}.mem` ({job.mem}) must be as sbatch takes it, e.g. 64G")
    for key in ("export.systems", "decode.search_systems"):
        systems = value_of(cfg, key) or []
        for system in systems:
            if system not in reported:
                raise ConfigError(f"`{key}` ({system}) must be `report_as` of a phase: {', '.join(reported)}")
            if systems.count(system) > 1:
                raise ConfigError(f"`{key}` ({system}) must be there once")
    _validate_searches(cfg)


def _validate_searches(cfg: Config) -> None:
    decode = cfg.decode
    for name in decode.searches:
        if name not in SEARCHES:
            raise ConfigError(f"`decode.searches` ({name}) must list searches out of {', '.join(SEARCHES)}")
        if decode.searches.count(name) > 1:
            raise ConfigError(f"`decode.searches` ({name}) must be there once")
    for system in searched_systems(cfg):
        which = _model_of(cfg, system)
        if getattr(cfg, which).decoder.kind != "stateless":
            raise ConfigError(
                f"`{which}.decoder.kind` (lstm) must be stateless for {', '.join(decode.searches)}, which keep "
                f"nothing but the last tokens; leave {system} out of `decode.search_systems`"
            )
    if "fast_beam_search_LG" in decode.searches and not decode.lm_scales:
        raise ConfigError("`decode.lm_scales` must have at least one entry for fast_beam_search_LG")
    if "fast_beam_search_hotwords" in decode.searches and not any(phrase.strip() for phrase in decode.hotwords):
        raise ConfigError("`decode.hotwords` must have at least one phrase for fast_beam_search_hotwords")


def _validate_phase(cfg: Config, name: str, phase: PhaseConfig) -> None:
    where = f"phases.{name}"
    if phase.model not in ("teacher", "student"):
        raise ConfigError(f"`{where}.model` ({phase.model}) must be one of teacher, student")
    external = cfg.external_teacher.path is not None
    for key in ("init_from", "teacher"):
        ref = getattr(phase, key)
        if ref is not None and ref not in cfg.phases and not (external and ref == EXTERNAL_TEACHER):
            raise ConfigError(f"`{where}.{key}` ({ref}) must name a phase: {', '.join(cfg.phases)}")
    if not phase.train:
        raise ConfigError(f"`{where}.train` ([]) must list at least one part out of {', '.join(MODEL_PARTS)}")
    for part in phase.train:
        if part not in MODEL_PARTS:
            raise ConfigError(f"`{where}.train` ({part}) must list parts out of {', '.join(MODEL_PARTS)}")
    for term in phase.loss_scales:
        if term not in LOSS_TERMS:
            raise ConfigError(f"`{where}.loss_scales` ({term}) must use terms out of {', '.join(LOSS_TERMS)}")
        if phase.loss_scales[term] < 0:
            raise ConfigError(f"`{where}.loss_scales.{term}` ({phase.loss_scales[term]}) must not be negative")
    scale = {term: phase.loss_scales.get(term, 0) for term in LOSS_TERMS}
    if scale["pruned"] + scale["transducer_kd"] > 0 and scale["simple"] == 0:
        raise ConfigError(
            f"`{where}.loss_scales` must have `simple` beside `pruned` and `transducer_kd`: it chooses the pruned band"
        )
    for part in phase.train:
        if not any(scale[term] > 0 for term in _REACHED_BY[part]):
            raise ConfigError(
                f"`{where}.train` ({part}) must have one of {', '.join(_REACHED_BY[part])} in `loss_scales`, or it"
                " learns nothing"
            )
    if scale["transducer_kd"] + scale["attention_kd"] > 0:
        if phase.teacher is None:
            raise ConfigError(f"`{where}.teacher` must name a phase, since its losses distil")
        factors = (cfg.teacher.encoder.subsampling_factor, cfg.student.encoder.subsampling_factor)
        if factors[0] != factors[1] and not external:
            raise ConfigError(
                f"`teacher.encoder.subsampling_factor` and the student's {factors} must be equal to distil"
            )
    if phase.copy_from_teacher and phase.init_from is not None:
        raise ConfigError(f"`{where}` must have either `copy_from_teacher` or `init_from`, not both")
    if phase.cpu_ranks < 1:
        raise ConfigError(f"`{where}.cpu_ranks` ({phase.cpu_ranks}) must be positive")
    if not phase.base_lr > 0:
        raise ConfigError(f"`{where}.base_lr` ({phase.base_lr}) must be positive")
    if phase.copy_from_teacher and phase.teacher is None:
        raise ConfigError(f"`{where}.teacher` must name a phase, since `copy_from_teacher` is true")
    if not 1 <= phase.average <= phase.num_epochs:
        raise ConfigError(f"`{where}.average` ({phase.average}) must be from 1 to num_epochs ({phase.num_epochs})")
    if phase.average > cfg.train.keep_last_epochs:
        raise ConfigError(
            f"`train.keep_last_epochs` ({cfg.train.keep_last_epochs}) must be at least `{where}.average`"
            f" ({phase.average})"
        )


def reported_systems(cfg: Config) -> dict[str, str]:
    """`report_as` -> phase, in the YAML's order; an external teacher is the first, as `teacher`."""
    external = {} if cfg.external_teacher.path is None else {"teacher": EXTERNAL_TEACHER}
    return {**external, **{phase.report_as: name for name, phase in cfg.phases.items() if phase.report_as}}


def exported_systems(cfg: Config) -> list[str]:
    """The systems that stage 10 exports; none where neither teacher nor student is reported and trained here."""
    if cfg.export.systems is not None:
        return cfg.export.systems
    reported = reported_systems(cfg)
    return [name for name in ("teacher", "student") if reported.get(name, EXTERNAL_TEACHER) != EXTERNAL_TEACHER]


def searched_systems(cfg: Config) -> list[str]:
    """The systems that `decode.searches` decode: those named, or those of stage 10 that have a stateless decoder."""
    if not cfg.decode.searches:
        return []
    if cfg.decode.search_systems is not None:
        return cfg.decode.search_systems
    return [s for s in exported_systems(cfg) if getattr(cfg, _model_of(cfg, s)).decoder.kind == "stateless"]


def _model_of(cfg: Config, system: str) -> str:
    return cfg.phases[reported_systems(cfg)[system]].model


def phases_of_stage(cfg: Config, stage: int) -> list[str]:
    """The phases that stage `stage` of run.sh trains, in the YAML's order."""
    return [name for name, phase in cfg.phases.items() if phase.stage == stage]
