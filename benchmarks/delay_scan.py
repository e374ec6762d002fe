"""Error rate against when words appear: deep stages with several delay penalties and frame shifts, from one start.

    egs/librispeech/twopass_kd/run.sh --conf mini --stop-stage 8     # makes where they start from
    python benchmarks/delay_scan.py exp/delay_scan --penalties 0 0.01 0.03 --shifts -1

Trains teacher/deep from the experiment's teacher/las with each `loss.delay_penalty`, and student/deep from its
student/las_kd: with each penalty and the teacher of the first one (0: as late as it likes to be), with the teacher of
the student's own penalty, and with the first penalty and each `kd.frame_shift`. Prints the first pass's WER and how
many milliseconds after the end of a word its last token comes, for each set; the settings are to be chosen on dev.
What was trained stays in the folder, and is not trained again.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import RECIPE, make_parser, read_config
from tqdm import tqdm
from training_runs import TrainingRun

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.tokenizer import open_tokenizer
from twopass_kd.models.checkpoint import load_model
from twopass_kd.scoring.delay import describe_delays, word_delays
from twopass_kd.scoring.wer import corpus_wer
from twopass_kd.search.decode_set import decode_set, first_pass_tokens, first_pass_words, transcripts
from twopass_kd.search.methods import own_searches
from twopass_kd.search.word_times import word_times

STARTS = ("teacher/las", "student/las_kd")


@dataclass(frozen=True)
class Arm:
    """One training of the scan; without `shift` it is a teacher's."""

    penalty: float
    shift: int | None = None
    teacher: "Arm | None" = None

    @property
    def phase(self) -> str:
        return "teacher/deep" if self.shift is None else "student/deep"

    def __str__(self) -> str:
        if self.teacher is None:
            return f"teacher, penalty {self.penalty:g}"
        return f"student of teacher {self.teacher.penalty:g}, penalty {self.penalty:g}, shift {self.shift}"

    def exp_dir(self, out: Path) -> Path:
        return out / str(self).replace(", ", "-").replace(" ", "_")


def list_arms(penalties: list[float], shifts: list[int]) -> tuple[list[Arm], list[Arm]]:
    """Teachers and students."""
    teachers = [Arm(penalty) for penalty in penalties]
    late = teachers[0]
    students = [Arm(penalty, 0, late) for penalty in penalties]
    students += [Arm(teacher.penalty, 0, teacher) for teacher in teachers[1:]]
    students += [Arm(late.penalty, shift, late) for shift in shifts]
    return teachers, students


def train(arm: Arm, cfg: Config, args: argparse.Namespace) -> None:
    folder = arm.exp_dir(args.out).resolve()
    links = {phase: args.exp_dir.resolve() / cfg.name / phase for phase in STARTS}
    if arm.teacher is not None:
        links[arm.teacher.phase] = arm.teacher.exp_dir(args.out).resolve() / cfg.name / arm.teacher.phase
    for phase, target in links.items():
        link = folder / cfg.name / phase
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(target)
    settings = argparse.Namespace(conf=args.conf, data_dir=args.data_dir, phase=arm.phase)
    overrides = [f"loss.delay_penalty={arm.penalty}", f"kd.frame_shift={arm.shift or 0}", *args.overrides]
    run = TrainingRun(settings, overrides, folder, cfg.phases[arm.phase].cpu_ranks)
    run.start()
    run.finish()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("out", type=Path, help="folder for what is trained")
    parser.add_argument("--data-dir", type=Path, help="of the experiment (the recipe's data/<conf> if not given)")
    parser.add_argument("--exp-dir", type=Path, default=RECIPE / "exp", help="of the experiment")
    parser.add_argument("--penalties", type=float, nargs="+", default=[0.0, 0.01, 0.03], help="loss.delay_penalty")
    parser.add_argument("--shifts", type=int, nargs="*", default=[-1], help="kd.frame_shift, beside 0")
    parser.add_argument("--jobs", type=int, default=2, help="students side by side")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="of all trainings")
    args = parser.parse_args()
    cfg = read_config(args.conf, args.overrides)
    args.data_dir = args.data_dir or RECIPE / "data" / cfg.name
    teachers, students = list_arms(args.penalties, args.shifts)
    for arm in tqdm(teachers, desc="teachers", unit="training"):
        train(arm, cfg, args)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(lambda arm: train(arm, cfg, args), students), total=len(students), desc="students"))

    tokenizer = open_tokenizer(cfg, args.data_dir)
    models = {
        arm: load_model(arm.exp_dir(args.out) / cfg.name / arm.phase / "final.pt")[0] for arm in teachers + students
    }
    searches = own_searches(cfg)
    print(f"{describe_environment()}; seed {cfg.seed}; milliseconds")
    for part in (*cfg.corpus.dev_parts, *cfg.corpus.test_parts):
        print(f"\n| {part} | greedy | first pass | 50% | 90% | 99% |\n|---|---:|---:|---:|---:|---:|")
        for arm, model in models.items():
            factor = model.encoder.subsampling_factor
            data = AsrDataModule(cfg, args.data_dir, tokenizer, factor)
            said = word_times(cfg, part, data, args.data_dir, args.exp_dir)
            decoded = decode_set(model, data.decode_loader(part), part, searches, tokenizer)
            passes = [transcripts(decoded, first_pass_tokens(decoded, name), tokenizer) for name in searches]
            cells = [f"{corpus_wer(found).wer:.2f}" for found in passes]
            delay = describe_delays(word_delays(said, first_pass_words(decoded, "first_pass", tokenizer, factor)))
            quantiles = () if delay is None else (delay.p50, delay.p90, delay.p99)
            cells += [f"{1000 * quantile:.0f}" for quantile in quantiles] or ["-"] * 3
            print(f"| {arm} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
