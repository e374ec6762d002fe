"""Runs the stages of run.sh, which calls it: takes its options, loads the config and does what they ask for.

    python3 -m twopass_kd.bin.run_stages CALLERS_FOLDER COMMANDS [options of run.sh]

`./run.sh --help` explains the options.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twopass_kd.config.load import experiment_folder, load_config
from twopass_kd.config.schema import Config
from twopass_kd.stages.check_plan import check_plan
from twopass_kd.stages.commands import parse_commands
from twopass_kd.stages.plan import Plan
from twopass_kd.stages.run import RunError, StageRun, Stopped
from twopass_kd.stages.slurm import show_status, submit

# Which experiment this is; the report shows them.
GIVEN = ("conf", "corpus_dir", "data_dir", "exp_dir", "baseline", "seeds", "seed")
RUNNING = ("nj", "threads", "world_size", "nnodes")  # how it runs
OTHER_RANKS = re.compile(r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
PATHS = ("decode.arpa", "external_teacher.path", "external_teacher.recipe", "external_teacher.tokens")


def integer(option: str, low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not re.fullmatch("0|[1-9][0-9]{0,17}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"`{option}` ({text}) must be a whole number from {low} to {high}")
        return int(text)

    return convert


def one_of(option: str, *words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"`{option}` ({text}) must be {' or '.join(words)}")
        return text

    return convert


def get_parser() -> argparse.ArgumentParser:
    """The options of run.sh, whose text for --help is its own: it needs no Python."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--stage", type=integer("--stage", 0, 10), default=0)
    parser.add_argument("--stop-stage", type=integer("--stop-stage", 0, 10), default=10)
    for option in ("--conf", "--corpus-dir", "--data-dir", "--teacher", "--exp-dir"):
        parser.add_argument(option)
    parser.add_argument("--baseline", type=one_of("--baseline", "true", "false"))
    for option in ("--seeds", "--nj", "--threads", "--world-size", "--nnodes"):
        parser.add_argument(option, type=integer(option, 1, 9999))
    parser.add_argument("--seed", type=integer("--seed", 0, 10**18 - 1))
    parser.add_argument("--launcher", type=one_of("--launcher", "local", "slurm"), default="local")
    for option in ("--status", "--dry-run", "--force", "--help"):
        parser.add_argument(option, action="store_true")
    return parser


def parse(words: list[str], caller_dir: str) -> argparse.Namespace:
    """The options, their paths seen from this folder, with `overrides` (key=value) and what of them others get.

    Raises:
      RunError: what is wrong with them.
    """
    parser = get_parser()
    takes_value = {s for action in parser._actions if action.nargs is None for s in action.option_strings}
    joined: list[str] = []  # --option=value, since a value may begin with a dash
    words = list(words)
    while words:
        word = words.pop(0)
        if word in takes_value and words and not words[0].startswith("--"):
            word += f"={words.pop(0)}"
        if word.removesuffix("=") in takes_value:
            raise RunError(f"`{word.removesuffix('=')}` must be followed by a value; see ./run.sh --help")
        joined.append(word)
    try:
        args, others = parser.parse_known_args(joined)
    except argparse.ArgumentError as e:
        raise RunError(e.message) from e
    args.overrides = []
    for word in others:
        key, is_setting, value = word.partition("=")
        if word.startswith("-"):
            known = " ".join(s for action in parser._actions for s in action.option_strings)
            raise RunError(f"`{key}` is not an option; known options: {known}")
        if not is_setting:
            raise RunError(f"`{word}` must be an option or key=value; see ./run.sh --help")
        is_path = key in PATHS and value not in ("", "null")
        args.overrides.append(f"{key}={resolve(value, caller_dir)}" if is_path else word)
    if args.stage > args.stop_stage:
        raise RunError(f"`--stop-stage` ({args.stop_stage}) must not be before `--stage` ({args.stage})")
    options = {name: [f"--{name.replace('_', '-')}", str(getattr(args, name))] for name in GIVEN + RUNNING}
    args.given = [word for name in GIVEN if getattr(args, name) is not None for word in options[name]]
    args.running = [word for name in RUNNING if getattr(args, name) is not None for word in options[name]]
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", "")
    cores = int(cpus) if re.fullmatch("[1-9][0-9]{0,3}", cpus) else len(os.sched_getaffinity(0))
    args.nj = args.nj or cores
    args.threads, args.world_size, args.nnodes = args.threads or 1, args.world_size or 1, args.nnodes or 1
    if args.teacher:
        args.teacher = resolve(args.teacher, caller_dir)
        if not Path(args.teacher).is_file():
            raise RunError(f"`--teacher` ({args.teacher}) must be a file")
        args.overrides.append(f"external_teacher.path={args.teacher}")
    args.command = shlex.join(["./run.sh", *args.given, *args.overrides])
    args.conf = find_conf(args.conf or "mini", caller_dir)
    for name in ("corpus_dir", "data_dir", "exp_dir"):
        if getattr(args, name) is not None:
            setattr(args, name, resolve(getattr(args, name), caller_dir))
    args.exp_dir = args.exp_dir or "exp"
    return args


def resolve(path: str, caller_dir: str) -> str:
    """A path as the caller meant it: absolute, or relative to the recipe where it lies inside, so that what is written
    stays right when the recipe is moved."""
    path = os.path.normpath(os.path.join(caller_dir, os.path.expanduser(path) if path.split("/")[0] == "~" else path))
    path = path.removeprefix(f"{os.environ.get('PWD', os.getcwd())}/")
    return f"./{path}" if path.startswith("-") else path  # no option to what gets it


def find_conf(name: str, caller_dir: str) -> str:
    """The YAML file that --conf means: the name of one in conf/, a path from the caller's folder or from this one."""
    for candidate in (f"conf/{name}.yaml", resolve(name, caller_dir), name):
        if Path(candidate).is_file():
            return candidate
    names = " ".join(sorted(path.stem for path in Path("conf").glob("*.yaml")))
    raise RunError(f"`--conf` ({name}) must be a YAML file or one of the names in conf/: {names}")


def make_plans(args: argparse.Namespace) -> tuple[list[Plan], Plan | None]:
    """The plan of the experiment or, where there are several seeds, those of all of them (of one: --seed), and the plan
    of the report on all.

    Raises:
      ConfigError, RunError: what is wrong with the config or the options.
    """
    cfg = load_config(Path(args.conf), args.overrides)
    if args.seeds and cfg.seeds:
        raise RunError(f"`--seeds` ({args.seeds}) must not be given beside `seeds` ({', '.join(map(str, cfg.seeds))})")
    if args.seeds:
        args.overrides.append(f"seeds=[{', '.join(str(cfg.seed + i) for i in range(args.seeds))}]")
        cfg = load_config(Path(args.conf), args.overrides)
    chosen = next((word for word in args.overrides if word.startswith("seed=")), None)
    if cfg.seeds and chosen and not args.seeds:
        raise RunError(
            f"`{chosen}` must not be given beside several seeds; for one of them say --{chosen.replace('=', ' ')}"
        )
    if args.seed is not None and args.seed not in cfg.seeds:
        known = ", ".join(map(str, cfg.seeds)) or "there are none; say --seeds N"
        raise RunError(f"`--seed` ({args.seed}) must be one of the seeds: {known}")
    whole = make_plan(cfg, args)
    if not cfg.seeds:
        return [whole], None
    plans = []
    for seed in cfg.seeds if args.seed is None else [args.seed]:
        overrides = [*args.overrides, f"seed={seed}"]
        cfg = load_config(Path(args.conf), overrides)
        plans.append(replace(whole, cfg=cfg, experiment=experiment_folder(cfg, args.exp_dir), overrides=overrides))
    return plans, whole if args.seed is None else None


def make_plan(cfg: Config, args: argparse.Namespace) -> Plan:
    """The plan of an experiment, its folders those of the options or the usual ones.

    Raises:
      ConfigError, RunError: what is wrong with the config or the options.
    """
    corpus_dir, data_dir = args.corpus_dir, args.data_dir or f"data/{cfg.name}"
    if cfg.corpus.kind == "librispeech":
        corpus_dir, data_dir = corpus_dir or "download/LibriSpeech", args.data_dir or "data"
    elif cfg.corpus.kind != "folder":
        corpus_dir = corpus_dir or f"download/{cfg.name}/LibriSpeech"
    elif corpus_dir is None and args.stage <= 1:
        raise RunError(
            f"`--corpus-dir` must name the corpus, since {cfg.name} reads a folder of yours (corpus.kind is folder)"
        )
    plan = Plan(
        cfg, args.baseline != "false", Path(corpus_dir) if corpus_dir else None, Path(data_dir),
        Path(args.exp_dir) / cfg.name, args.overrides,
    )  # fmt: skip
    if not args.status:
        check_plan(plan, range(args.stage, args.stop_stage + 1))
    return plan


def forget_other_ranks() -> None:
    """Clusters set these in every pod or task. Here they are about other ranks than ours, which get their own."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        said = f"RANK, WORLD_SIZE ({world_size}) and the like in the environment"
        print(f"ignored: {said}; --world-size says how many ranks")
    for name in filter(OTHER_RANKS.fullmatch, list(os.environ)):
        del os.environ[name]


def run_stages(args: argparse.Namespace, commands: str) -> None:
    """Do what the options ask for: show the status, submit to Slurm, or run the stages here."""
    if args.nnodes > 1 and args.launcher == "local" and "SLURM_JOB_ID" not in os.environ and not args.status:
        raise RunError(
            f"`--nnodes` ({args.nnodes}) must be 1 outside of Slurm; add --launcher slurm, or run twopass_kd.bin.train"
            " on each node yourself (--dry-run shows the commands; add --rdzv-endpoint FIRST_NODE:PORT)"
        )
    forget_other_ranks()
    plans, over_seeds = make_plans(args)
    run = StageRun(plans, args, parse_commands(commands), over_seeds)
    if args.status:
        show_status(run)
    elif args.launcher == "slurm":
        # The options that each stage's job gets: as they are here, seen from this folder.
        plan = plans[0]
        command = ["./run.sh", "--conf", args.conf, "--data-dir", str(plan.data_dir), "--exp-dir", args.exp_dir,
                   "--baseline", str(plan.baseline).lower()]  # fmt: skip
        command += ["--corpus-dir", str(plan.corpus_dir)] if plan.corpus_dir else []
        command += ["--seed", str(args.seed)] if args.seed is not None else []
        submit(run, args, command)
        if args.dry_run:
            run.show_cost()
    else:
        run.run()


def main() -> int:
    sys.stdout.reconfigure(line_buffering=True)  # in order with stderr and what the commands print
    caller_dir, commands, *words = sys.argv[1:]
    try:
        args = parse(words, caller_dir)
        run_stages(args, commands)
    except BrokenPipeError:  # of `./run.sh --status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so once more at its end
        return 0
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except Stopped as e:
        print(e, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
