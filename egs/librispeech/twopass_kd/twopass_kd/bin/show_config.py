"""Shows a config file with its base and all defaults filled in, for people, or what run.sh needs of it.

    python -m twopass_kd.bin.show_config --conf conf/mini.yaml            the resolved config as YAML
    python -m twopass_kd.bin.show_config --conf conf/mini.yaml --plan     lines of key, tab, value

key=value words behind it replace settings of the file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from twopass_kd.config.fingerprint import fingerprint
from twopass_kd.config.load import config_to_yaml, exported_systems, load_config, phases_of_stage, reported_systems
from twopass_kd.config.schema import Config, ConfigError

BASELINE = "student_copy"
STAGES = range(11)


def phases_to_train(cfg: Config, stage: int, baseline: bool = True) -> list[str]:
    """The phases that a stage of run.sh trains, without those of the baseline where `baseline` is false."""
    return [p for p in phases_of_stage(cfg, stage) if baseline or system_of(p) != BASELINE]


def systems(cfg: Config, baseline: bool = True) -> list[list[str]]:
    """`[name, phase]` of every system that stages 8 and 9 report."""
    return [
        [system, phase] for system, phase in reported_systems(cfg).items() if baseline or system_of(phase) != BASELINE
    ]


def system_of(phase_name: str) -> str:
    """`student` of `student/deep`."""
    return phase_name.split("/")[0]


def plan(cfg: Config, baseline: bool = True) -> list[list[str]]:
    """All that run.sh needs to know, as rows of a key and its value (lists joined by spaces).

    Keys: name, kind, vocab_size, musan (true or false), parts, train_parts, dev_parts, test_parts, systems,
    export_systems; fingerprint.N and phases.N of stage N; stage.P (the stage that trains phase P) and needs.P (the
    phases whose `final.pt` P reads), cpu_ranks.P; phase.S (the phase that system S is).

    Raises:
      ConfigError: a phase is trained before what it needs, or a file that is named is not there.
    """
    corpus, external = cfg.corpus, cfg.external_teacher
    named = {"decode.arpa": cfg.decode.arpa, "external_teacher.path": external.path,
             "external_teacher.recipe": external.recipe, "external_teacher.tokens": external.tokens}  # fmt: skip
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            raise ConfigError(f"`{key}` ({path}) must exist; correct the path")
    by_system = dict(systems(cfg, baseline))
    for name in exported_systems(cfg):
        if name not in by_system:
            raise ConfigError(f"`export.systems` ({name}) must not be the baseline's where that is left out")
    rows = [
        ["name", cfg.name],
        ["kind", corpus.kind],
        ["vocab_size", str(cfg.tokens.vocab_size)],
        ["musan", str(corpus.musan).lower()],
        ["parts", *corpus.train_parts, *corpus.dev_parts, *corpus.test_parts],
        ["train_parts", *corpus.train_parts],
        ["dev_parts", *corpus.dev_parts],
        ["test_parts", *corpus.test_parts],
        ["systems", *by_system],
        ["export_systems", *exported_systems(cfg)],
    ]
    rows += [[f"phase.{name}", phase] for name, phase in by_system.items()]
    for stage in STAGES:
        rows.append([f"fingerprint.{stage}", fingerprint(cfg, stage)])
        rows.append([f"phases.{stage}", *phases_to_train(cfg, stage, baseline)])
    names = list(cfg.phases)
    for name, phase in cfg.phases.items():
        needs = [ref for ref in (phase.init_from, phase.teacher) if ref in cfg.phases]
        for ref in needs:
            if (cfg.phases[ref].stage, names.index(ref)) >= (phase.stage, names.index(name)):
                raise ConfigError(
                    f"`phases.{name}` (stage {phase.stage}) must be in a later stage than {ref} (stage "
                    f"{cfg.phases[ref].stage}), or below it in the same one, since it starts from it or learns from it"
                )
        if phase.stage not in range(3, 8):
            raise ConfigError(f"`phases.{name}.stage` ({phase.stage}) must be from 3 to 7, the training stages")
        rows += [[f"stage.{name}", str(phase.stage)], [f"needs.{name}", *dict.fromkeys(needs)]]
        rows.append([f"cpu_ranks.{name}", str(phase.cpu_ranks)])
    return [[key, " ".join(values)] for key, *values in rows]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="show_config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conf", type=Path, required=True, help="the experiment's YAML file")
    parser.add_argument("--no-baseline", action="store_true", help=f"leave {BASELINE} out of the plan")
    parser.add_argument("--plan", action="store_true", help="lines of key, tab, value for run.sh, not YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return parser


def answer(args: argparse.Namespace) -> str:
    """What the options ask of the config, as text without a newline at its end."""
    cfg = load_config(args.conf, args.overrides)
    if args.plan:
        return "\n".join("\t".join(row) for row in plan(cfg, not args.no_baseline))
    return config_to_yaml(cfg).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    try:
        print(answer(get_parser().parse_args(argv)))
    except ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
