"""The experiment config: a strict YAML file with `key=value` overrides, read, checked and saved.

One YAML describes one experiment. A key that is not in the schema, a value of the wrong type and a reference to a phase
that does not exist are errors; nothing is skipped or guessed. Imports neither torch nor k2, so that the shell can ask
questions cheaply.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from twopass_kd.config.errors import explain
from twopass_kd.config.schema import (
    EXTERNAL_TEACHER,
    LOSS_TERMS,
    MODEL_PARTS,
    ClaimConfig,
    Config,
    ConfigError,
    PhaseConfig,
)
from twopass_kd.config.text import Layer, merge, parse_override, read_files
from twopass_kd.files.write import write_text_atomically

_CONFIG = TypeAdapter(Config)
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
    Raises:
      ConfigError: naming the key, what is wrong with it and what would be right.
    """
    path = Path(path)
    files = [Layer(f"{path}: ", {"name": path.stem}), *read_files(path)]
    layers = [parse_override(item) for item in overrides]
    cfg = _build(files, layers)
    _check_models_are_used(cfg, merge([files[-1], *layers]).get("models", {}))
    return cfg


def config_from_dict(resolved: dict[str, Any]) -> Config:
    """The inverse of `config_to_dict`: rebuild a `Config` out of a checkpoint or a saved `config.yaml`."""
    return _build([Layer("saved config: ", resolved)], [])


def config_to_dict(cfg: Config) -> dict[str, Any]:
    """A plain nested dict of `cfg`, as stored in checkpoints."""
    return _CONFIG.dump_python(cfg, by_alias=True, warnings=False)


def config_to_yaml(cfg: Config) -> str:
    """The resolved config as a YAML file has it."""
    return yaml.safe_dump(config_to_dict(cfg), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def save_config(cfg: Config, path: Path) -> None:
    """Write the resolved config as YAML."""
    write_text_atomically(Path(path), config_to_yaml(cfg))


def _build(files: Sequence[Layer], overrides: Sequence[Layer]) -> Config:
    try:
        cfg = Config(**merge([*files, *overrides]))
    except ValidationError as e:
        raise explain(e, files, overrides) from None
    if cfg.external_teacher.path is not None:
        _replace_teacher(cfg)
    _check(cfg)
    return cfg


def _replace_teacher(cfg: Config) -> None:
    """Leave out the phases that train a teacher; those that learn from one learn from the external one."""
    own = {name: phase for name, phase in cfg.phases.items() if phase.model == "teacher"}
    if not any(phase.teacher in (*own, EXTERNAL_TEACHER) for phase in cfg.phases.values()):  # a saved config has it
        raise ConfigError(
            f"`external_teacher.path` ({cfg.external_teacher.path}) must have something to teach: it stands for the"
            " model that is called `teacher`, from which no phase learns"
        )
    for name in own:
        del cfg.phases[name]
    for phase in cfg.phases.values():
        if phase.teacher in own:
            phase.teacher = EXTERNAL_TEACHER
    if cfg.export.systems is not None:  # nothing of it is exported here
        gone = {phase.report_as for phase in own.values()}
        cfg.export.systems = [system for system in cfg.export.systems if system not in gone]


def _check(cfg: Config) -> None:
    """The rules that the schema cannot have, since they are between its sections.

    Raises:
      ConfigError: naming the settings.
    """
    if cfg.augment.max_pause > cfg.corpus.max_duration:
        raise ConfigError(
            f"`augment.max_pause` ({cfg.augment.max_pause:g} s) must be at most `corpus.max_duration`"
            f" ({cfg.corpus.max_duration:g} s), which an utterance lasts"
        )
    reported: dict[str, str] = {}
    for name, phase in cfg.phases.items():
        _check_phase(cfg, f"phases.{name}", phase)
        if phase.report_as is None:
            continue
        other = reported.setdefault(phase.report_as, name)
        if other != name:
            raise ConfigError(f"`phases.{name}.report_as` ({phase.report_as}) must be unique; {other} has it too")
    for key, systems in (("export.systems", cfg.export.systems), ("decode.search_systems", cfg.decode.search_systems)):
        for system in systems or ():
            if system not in reported:
                raise ConfigError(f"`{key}` ({system}) must be `report_as` of a phase: {', '.join(reported)}")
    for name, phase in cfg.phases.items():
        _check_weights(cfg, f"phases.{name}", phase)
    for number, claim in enumerate(cfg.claims):
        _check_claim(cfg, f"claims[{number}]", claim)


def _check_models_are_used(cfg: Config, names: Iterable[str]) -> None:
    """Those that a file or override names itself; `base` may have more."""
    used = {phase.model for phase in cfg.phases.values()} | ({"teacher"} if cfg.external_teacher.path else set())
    for name in names if cfg.phases else ():
        if name not in used:
            raise ConfigError(f"`models.{name}` must be the `model` of a phase, or be left out")


def _check_claim(cfg: Config, where: str, claim: ClaimConfig) -> None:
    systems = reported_systems(cfg)
    for key in ("system", "against"):
        if getattr(claim, key) not in systems:
            raise ConfigError(
                f"`{where}.{key}` ({getattr(claim, key)}) must be a system: {', '.join(systems)}; or take the claim out"
                " (claims=[]: all)"
            )
    for name in claim.sets or ():
        if name not in cfg.corpus.test_parts:
            raise ConfigError(f"`{where}.sets` ({name}) must be test sets: {', '.join(cfg.corpus.test_parts)}")
    for number, other in enumerate(cfg.claims):
        both = [name for name in claim.sets or cfg.corpus.test_parts if name in (other.sets or cfg.corpus.test_parts)]
        if other is not claim and both and _said(cfg, other) == _said(cfg, claim):
            raise ConfigError(f"`{where}` must not say of {both[0]} what `claims[{number}]` says; remove one of them")


def _said(cfg: Config, claim: ClaimConfig) -> dict[str, Any]:
    """What a claim says of a test set; the first pass stands for a second one that one of its systems does not have."""
    reported = reported_systems(cfg)
    phases = [reported.get(claim.system), reported.get(claim.against)]
    said = {**asdict(claim), "sets": None}
    if any(name in cfg.phases and "attention_decoder" not in _trained_parts(cfg, name) for name in phases):
        said["pass_"] = said["pass_"].replace("two_pass", "first_pass")
    return said


def _check_phase(cfg: Config, where: str, phase: PhaseConfig) -> None:
    external = cfg.external_teacher.path is not None
    for key, ref in (("init_from", phase.init_from), ("teacher", phase.teacher)):
        if ref is not None and ref not in cfg.phases and not (external and ref == EXTERNAL_TEACHER):
            raise ConfigError(f"`{where}.{key}` ({ref}) must name a phase: {', '.join(cfg.phases)}")
        if ref is not None and cfg.phases.get(ref) is phase:
            raise ConfigError(f"`{where}.{key}` ({ref}) must name another phase, one that ends before this one begins")
    if phase.report_as == "teacher" and external:
        raise ConfigError(f"`{where}.report_as` (teacher) must be another: the external teacher is reported so")
    if phase.model not in cfg.models:
        raise ConfigError(f"`{where}.model` ({phase.model}) must be one of `models`: {', '.join(cfg.models)}")
    if not phase.train:
        raise ConfigError(f"`{where}.train` ([]) must list at least one part out of {', '.join(MODEL_PARTS)}")
    used = {term for term, scale in phase.loss_scales.items() if scale > 0}
    if used & {"pruned", "transducer_kd"} and "simple" not in used:
        raise ConfigError(
            f"`{where}.loss_scales` must have `simple` beside `pruned` and `transducer_kd`: it chooses the pruned band"
        )
    for part in phase.train:
        if not used & set(_REACHED_BY[part]):
            raise ConfigError(
                f"`{where}.train` ({part}) must have one of {', '.join(_REACHED_BY[part])} in `loss_scales`, or it"
                " learns nothing"
            )
    distils = used & {"transducer_kd", "attention_kd"}
    if phase.teacher is None and (distils or phase.copy_from_teacher):
        why = "its losses distil" if distils else "`copy_from_teacher` is true"
        raise ConfigError(f"`{where}.teacher` must name a phase, since {why}")
    if phase.copy_from_teacher and phase.init_from is not None:
        raise ConfigError(f"`{where}` must have either `copy_from_teacher` or `init_from`, not both")
    if phase.average > phase.num_epochs:
        raise ConfigError(f"`{where}.average` ({phase.average:g}) must be at most num_epochs ({phase.num_epochs})")
    for term in phase.start_scales:
        if term not in used:
            raise ConfigError(f"`{where}.start_scales` ({term}) must have a scale in `loss_scales` too")


def _check_weights(cfg: Config, where: str, phase: PhaseConfig) -> None:
    """The weights that a phase starts from, or learns from, must fit and must have learnt something by then."""
    if phase.init_from in cfg.phases:
        before = cfg.phases[phase.init_from].model
        if cfg.models[before] != cfg.models[phase.model]:
            raise ConfigError(
                f"`{where}.init_from` ({phase.init_from}) must be a phase of the same model, `{phase.model}`, but it"
                f" trains `{before}`; name another, or say copy_from_teacher"
            )
    if phase.teacher in cfg.phases:
        distilled, names = distilled_parts(phase), (cfg.phases[phase.teacher].model, phase.model)
        factors = [cfg.models[name].encoder.subsampling_factor for name in names]
        if distilled and factors[0] != factors[1]:
            raise ConfigError(
                f"`models.{names[1]}.encoder.subsampling_factor` ({factors[1]}) must be that of {names[0]}"
                f" ({factors[0]}), from which {where} distils"
            )
        trained = _trained_parts(cfg, phase.teacher)
        untrained = [part for part in distilled if part not in trained]
        if untrained:
            raise ConfigError(
                f"`{where}.teacher` ({phase.teacher}) must have learnt {', '.join(untrained)}, from which this phase"
                " distils; name a later phase of the teacher"
            )


def _trained_parts(cfg: Config, name: str | None) -> set[str]:
    """The parts that have learnt something when a phase ends, in it and in those that it starts from."""
    parts: set[str] = set()
    seen: set[str] = set()
    while name in cfg.phases and name not in seen:
        seen.add(name)
        parts.update(cfg.phases[name].train)
        name = cfg.phases[name].init_from
    return parts


def distilled_parts(phase: PhaseConfig) -> list[str]:
    """The parts of its teacher that a phase learns from."""
    parts: list[str] = []
    if phase.loss_scales.get("transducer_kd", 0) > 0:
        parts += ["encoder", "decoder", "joiner"]
    if phase.loss_scales.get("attention_kd", 0) > 0:
        parts += ["encoder", "attention_decoder"]
    return list(dict.fromkeys(parts))


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
    return [s for s in exported_systems(cfg) if cfg.models[model_of(cfg, s)].decoder.kind == "stateless"]


def model_of(cfg: Config, system: str) -> str:
    """Which of `models` a system that is trained here is."""
    return cfg.phases[reported_systems(cfg)[system]].model


def largest_subsampling_factor(cfg: Config) -> int:
    """Of its models: what is long enough for that one is long enough for all."""
    return max(model.encoder.subsampling_factor for model in cfg.models.values())


def experiment_folder(cfg: Config, exp_dir: Path) -> Path:
    """`<exp_dir>/<name>`, or with `seeds` the folder in it of the config's seed, `seed-<n>`.

    Raises:
      ConfigError: the config's seed is none of them.
    """
    folder = Path(exp_dir) / cfg.name
    if not cfg.seeds:
        return folder
    if cfg.seed not in cfg.seeds:
        seeds = ", ".join(map(str, cfg.seeds))
        raise ConfigError(f"`seed` ({cfg.seed}) must be one of `seeds`: {seeds}; say which one (seed={cfg.seeds[0]})")
    return folder / f"seed-{cfg.seed}"


def phases_of_stage(cfg: Config, stage: int) -> list[str]:
    """The phases that stage `stage` of run.sh trains, in the YAML's order."""
    return [name for name, phase in cfg.phases.items() if phase.stage == stage]
