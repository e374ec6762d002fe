"""What makes a better student: arms that differ from the config in one thing, over seeds, from one teacher a seed.

    egs/librispeech/twopass_kd/run.sh --conf an4 --seeds 3 --stop-stage 4     # the teachers
    python benchmarks/ablation.py exp/ablation --conf an4

Trains student/rnnt_kd of each arm and seed and decodes it; with --whole all phases of the student, which the arms of
the second pass need. Prints a Markdown table of each set: WER as mean and range over seeds, the difference from the
first arm as mean over seeds and for each of them, and the seconds of training; and one of the dev loss on the texts,
which varies less. Arms are to be chosen on dev. What was trained stays in the folder, and is not trained again; nor is
what an arm has in common with the experiment's own student, where there is one, whose seconds are those of then.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from common import RECIPE, make_parser, read_config
from tqdm import tqdm

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.load import experiment_folder
from twopass_kd.config.schema import Config
from twopass_kd.files.decode_json import DecodeJson, Pass
from twopass_kd.files.json_model import read_json
from twopass_kd.files.layout import final_path
from twopass_kd.models.checkpoint import load_checkpoint, weights_digest
from twopass_kd.report.collect import read_metrics
from twopass_kd.scoring.wer import corpus_wer, read_recogs

PHASE = "phases.student/rnnt_kd"
ARMS: dict[str, list[str]] = {
    "as the config": [],
    "no distillation": [f"{PHASE}.loss_scales.transducer_kd=0"],
    "no copy": [f"{PHASE}.copy_from_teacher=false"],
    "scale 0.5": [f"{PHASE}.loss_scales.transducer_kd=0.5"],
    "scale 2": [f"{PHASE}.loss_scales.transducer_kd=2"],
    "temperature 2": ["kd.temperature=2"],
    "augmented from the first epoch": ["augment.after=0"],
    "first epoch not sorted": [f"{PHASE}.sort_first_epoch=false"],
}
SECOND_PASS_ARMS: dict[str, list[str]] = {
    "no LAS distillation": [f"phases.student/{phase}.loss_scales.attention_kd=0" for phase in ("las_kd", "deep")],
    "longer LAS stage": ["phases.student/las_kd.num_epochs=2"],
}
ALL_ARMS = ARMS | SECOND_PASS_ARMS


def first_pass_only(cfg: Config) -> list[str]:
    """Settings with which stage 8 decodes student/rnnt_kd alone."""
    return [f"phases.{name}.report_as={'student' if name == 'student/rnnt_kd' else 'null'}" for name in cfg.phases]


def run_sh(args: argparse.Namespace, cfg: Config, arm: str, data_dir: Path, exp_dir: Path) -> None:
    """Train and decode an arm of one seed, on one core."""
    settings = [] if args.whole else first_pass_only(cfg)
    settings += ["claims=[]", "export.systems=[]", "decode.searches=[]", "decode.condition_seconds=0"]
    settings += [f"seeds=[{', '.join(map(str, args.seeds))}]", *ALL_ARMS[arm], *args.overrides]
    command = ["bash", RECIPE / "run.sh", "--conf", args.conf.resolve(), "--data-dir", data_dir, "--exp-dir", exp_dir]
    command += ["--seed", cfg.seed, "--baseline", "false", "--nj", 1, *settings]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for first, last in [(5, 8)] if args.whole else [(5, 5), (8, 8)]:
        stages = [*map(str, command), "--stage", str(first), "--stop-stage", str(last)]
        done = subprocess.run(stages, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f"{arm}, seed {cfg.seed}: {stages} failed:\n{done.stdout[-3000:]}")


def exp_dir_of(args: argparse.Namespace, arm: str) -> Path:
    return args.out / arm.replace(" ", "_").replace("'", "")


def run_arm(args: argparse.Namespace, arm: str, seed: int) -> None:
    cfg = read_config(args.conf, [*args.overrides, f"seeds=[{', '.join(map(str, args.seeds))}]", f"seed={seed}"])
    exp_dir, data_dir = exp_dir_of(args, arm).resolve(), args.data_dir.resolve()
    teacher = experiment_folder(cfg, args.exp_dir).resolve() / "teacher"
    folder = experiment_folder(cfg, exp_dir)
    digest = weights_digest(load_checkpoint(final_path(teacher.parent, "teacher/deep"))["model"])
    taught_by = folder / "taught_by"
    if not taught_by.is_file() or taught_by.read_text() != digest:  # stages do not see that behind a link
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "teacher").symlink_to(teacher)
        trained = teacher.parent / "student"
        if trained.is_dir():  # what differs is trained anew
            shutil.copytree(trained, folder / "student")
        taught_by.write_text(digest)
    run_sh(args, cfg, arm, data_dir, exp_dir)


def folders_of(args: argparse.Namespace, cfg: Config, arm: str) -> list[Path]:
    """Of the seeds' experiments."""
    return [exp_dir_of(args, arm) / cfg.name / f"seed-{seed}" for seed in args.seeds]


def cells_of(values: Sequence[float], first: Sequence[float], digits: int) -> str:
    deltas = [value - other for value, other in zip(values, first, strict=True)]
    each = " ".join(f"{delta:+.{digits}f}" for delta in deltas)
    low, high = min(values), max(values)
    return f"{fmean(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f}) | {fmean(deltas):+.{digits}f}; {each}"


def table_of_losses(args: argparse.Namespace, cfg: Config) -> None:
    """Print the losses on the texts of the dev sets at the end of student/rnnt_kd, with its scales."""
    print("\n| dev loss on the texts, nats per frame | mean (range) | difference: mean; each seed |\n|---|---:|---:|")
    scales, first = cfg.phases["student/rnnt_kd"].loss_scales, None
    for arm in args.arms:
        losses = []
        for folder in folders_of(args, cfg, arm):
            curves = {c.term: c for c in read_metrics(folder / "student/rnnt_kd/metrics.jsonl", arm).curves}
            losses.append(sum(scales[term] * curves[term].valid[-1][1] for term in ("simple", "pruned", "ctc")))
        first = first or losses
        print(f"| {arm} | {cells_of(losses, first, 4)} |")


def table(args: argparse.Namespace, cfg: Config, part: str, passes: Sequence[Pass]) -> None:
    """Print the table of one set."""
    heads = [f"{name.title}, mean (range) | difference: mean; each seed" for name in passes]
    print(f"\n| {part} | {' | '.join(heads)} | training, s |\n|---|{'---:|' * (2 * len(passes) + 1)}")
    found: dict[str, dict[Pass, list[float]]] = {}
    for arm in args.arms:
        folders = [folder / "decode/student" for folder in folders_of(args, cfg, arm)]
        found[arm] = {
            name: [corpus_wer(read_recogs(folder / f"recogs-{part}-{name}.txt")).wer for folder in folders]
            for name in passes
        }
        cells = [cells_of(wers, found[args.arms[0]][name], 2) for name, wers in found[arm].items()]
        seconds = [read_json(folder / "decode.json", DecodeJson, "decode again").train_seconds for folder in folders]
        print(f"| {arm} | {' | '.join(cells)} | {fmean(seconds):.0f} |")


def main() -> None:
    parser = make_parser(__doc__, conf="an4")
    parser.add_argument("out", type=Path, help="folder for what is trained")
    parser.add_argument("--data-dir", type=Path, help="of the experiment (the recipe's data/<conf> if not given)")
    parser.add_argument("--exp-dir", type=Path, default=RECIPE / "exp", help="of the experiment, with its teachers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="whose teachers are there")
    parser.add_argument("--arms", nargs="+", choices=ALL_ARMS, metavar="ARM", help=", ".join(ALL_ARMS))
    parser.add_argument("--whole", action="store_true", help="all phases of the student, not the first one alone")
    parser.add_argument("--jobs", type=int, default=2, help="side by side, on a core each")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="of all arms")
    args = parser.parse_args()
    cfg = read_config(args.conf, args.overrides)
    others = {name.partition("/")[0] for name in cfg.phases} - {"teacher", "student", "student_copy"}
    if others:
        sys.exit(f"error: {args.conf} trains {', '.join(sorted(others))} too; take a config that does not")
    args.arms = args.arms or list(ALL_ARMS if args.whole else ARMS)
    if not args.whole and (second := [arm for arm in args.arms if arm in SECOND_PASS_ARMS]):
        sys.exit(f"error: `--arms` ({', '.join(second)}) differ in the second pass, which needs `--whole`")
    args.data_dir = args.data_dir or RECIPE / "data" / cfg.name
    jobs = [(arm, seed) for arm in args.arms for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(jobs), unit="training") as bar:
        for _ in pool.map(lambda job: run_arm(args, *job), jobs):
            bar.update()
    print(f"{describe_environment()}; seeds {' '.join(map(str, args.seeds))}")
    passes = [Pass.GREEDY_SEARCH, Pass.FIRST_PASS] + [Pass.TWO_PASS] * args.whole
    for part in (*cfg.corpus.dev_parts, *cfg.corpus.test_parts):
        table(args, cfg, part, passes)
    table_of_losses(args, cfg)


if __name__ == "__main__":
    main()
