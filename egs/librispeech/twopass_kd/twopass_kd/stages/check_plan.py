"""What the stages that are asked for need of the config, its models and this machine: checked before the first one
runs, so that no training ends in a stage that cannot run."""

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Container
from concurrent.futures import ProcessPoolExecutor

from twopass_kd.config.load import exported_systems, model_of, searched_systems
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.stages.plan import TRAINING_STAGES, Plan

# Packages that a stage imports late or only at times. check_env knows all of them; an environment of the user's may
# lack one.
_PACKAGES = {9: ("matplotlib", "jinja2"), 10: ("onnx", "onnxruntime", "safetensors", "soxr", "sherpa_onnx")}


def check_plan(plan: Plan, stages: Container[int]) -> None:
    """Check that each of `stages` can run, as far as config and machine tell.

    Raises:
      ConfigError: naming the setting, or what this machine lacks, and what to do.
    """
    _check_files(plan)
    _check_phases(plan)
    if any(stage in stages and not plan.has_nothing_to_do(stage) for stage in TRAINING_STAGES):
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:  # whose memory is free afterwards
            pool.submit(_check_sizes, plan.cfg).result()
    if (8 in stages or 9 in stages) and not plan.systems():
        raise ConfigError(
            "`phases.*.report_as` must name at least one system for stages 8 and 9 to decode and report; give a phase"
            " one, or stop before (--stop-stage 7)"
        )
    if 8 in stages:
        _check_searches(plan)
    if 10 in stages:
        _check_export(plan)
    for stage, packages in _PACKAGES.items():
        if stage in stages and not plan.has_nothing_to_do(stage):
            _check_packages(f"stage {stage}", packages, f"stop before (--stop-stage {stage - 1})")


def _check_sizes(cfg: Config) -> None:
    from twopass_kd.teachers.check_teacher import check_sizes  # imports torch

    check_sizes(cfg, cfg.tokens.vocab_size)


def _check_files(plan: Plan) -> None:
    cfg, external = plan.cfg, plan.cfg.external_teacher
    named = {"decode.arpa": cfg.decode.arpa, "external_teacher.path": external.path,
             "external_teacher.recipe": external.recipe, "external_teacher.tokens": external.tokens}  # fmt: skip
    for key, path in named.items():
        if path is not None and not os.path.exists(path):
            raise ConfigError(f"`{key}` ({path}) must exist; correct the path")


def _check_phases(plan: Plan) -> None:
    """A phase comes after those that it needs, in a stage that trains; none that is trained needs one that is not."""
    phases = plan.cfg.phases
    names = list(phases)
    trained = {name for stage in TRAINING_STAGES for name in plan.phases(stage)}
    for name, phase in phases.items():
        for ref in plan.needs(name):
            if name in trained and ref not in trained and phases[ref].stage in TRAINING_STAGES:
                raise ConfigError(
                    f"`phases.{name}` must not start from or learn from {ref}, the baseline's, which is left out; name"
                    " another phase, or say --baseline true"
                )
            if name in _needed_in_turn(plan, ref):
                raise ConfigError(
                    f"`phases.{name}` and `phases.{ref}` must not both need each other; see `init_from` and `teacher`"
                )
            if (phases[ref].stage, names.index(ref)) >= (phase.stage, names.index(name)):
                raise ConfigError(
                    f"`phases.{name}` (stage {phase.stage}) must be in a later stage than {ref} (stage "
                    f"{phases[ref].stage}), or below it in the same one, since it starts from it or learns from it"
                )
        if phase.stage not in TRAINING_STAGES:
            raise ConfigError(f"`phases.{name}.stage` ({phase.stage}) must be from 3 to 7, the training stages")


def _needed_in_turn(plan: Plan, name: str) -> set[str]:
    """All phases that must end before this one starts."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = set(plan.needs(waiting.pop())) - found
        found |= new
        waiting += new
    return found


def _check_searches(plan: Plan) -> None:
    """The searches on graphs, which k2 keeps apart by the last tokens. Without k2 stage 8 leaves them out."""
    decode = plan.cfg.decode
    searches, systems = ", ".join(decode.searches), searched_systems(plan.cfg)
    if not searches:
        return
    if not systems:
        raise ConfigError(
            f"`decode.searches` ({searches}) must have systems to decode, which are those of stage 10 that have a"
            " stateless decoder where `decode.search_systems` is null, and there are none; say decode.searches=[], or"
            " name systems in `decode.search_systems`"
        )
    _check_not_left_out(plan, "export.systems" if decode.search_systems is None else "decode.search_systems", systems)
    tokens_alone = f"{searches}, which keep nothing but the last tokens"
    _check_stateless(plan, systems, tokens_alone, "or leave {system} out of `decode.search_systems`")
    if importlib.util.find_spec("k2") is None:
        print(f"note: k2 is not installed, so that stage 8 leaves out {searches}", file=sys.stderr)
    elif "fast_beam_search_LG" in decode.searches:
        packages = ("kaldilm",) if decode.arpa else ("kaldilm", "kaldingram")
        _check_packages("fast_beam_search_LG", packages, "take it out of `decode.searches`")


def _check_export(plan: Plan) -> None:
    systems = exported_systems(plan.cfg)
    if not systems and plan.cfg.export.systems is None:
        raise ConfigError(
            "`export.systems` must name what stage 10 exports, since neither teacher nor student is both reported and"
            " trained here; name systems, say export.systems=[], or stop before (--stop-stage 9)"
        )
    _check_not_left_out(plan, "export.systems", systems)
    runtimes = "stage 10, since the streaming runtimes give the decoder the last tokens and keep no state of it"
    otherwise = "leave {system} out of `export.systems` (export.systems=[]: nothing is exported), or stop before"
    otherwise += " (--stop-stage 9)"
    _check_stateless(plan, systems, runtimes, otherwise)
    if systems and not os.path.exists("/proc/self/status"):
        raise ConfigError("stage 10 measures memory by /proc, which Linux has; stop before (--stop-stage 9)")


def _check_stateless(plan: Plan, systems: list[str], what: str, otherwise: str) -> None:
    """Check the decoders of `systems`; `otherwise` is what else can be done, with a place for the system."""
    for system in systems:
        which = model_of(plan.cfg, system)
        if plan.cfg.models[which].decoder.kind != "stateless":
            key = f"models.{which}.decoder.kind"
            raise ConfigError(
                f"`{key}` (lstm) must be stateless for {what}. Say {key}=stateless, " + otherwise.format(system=system)
            )


def _check_not_left_out(plan: Plan, key: str, systems: list[str]) -> None:
    for name in systems:
        if name not in plan.systems():
            raise ConfigError(
                f"`{key}` ({name}) must not be the baseline's where that is left out; leave {name} out of it, or say"
                " --baseline true"
            )


def _check_packages(what: str, packages: tuple[str, ...], otherwise: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise ConfigError(f"{what} needs {name}, which is not installed; do `pip install {name}`, or {otherwise}")
