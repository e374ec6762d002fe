"""Stage 9, second half: write `report.html` and `report.md` from `results.json`."""

import argparse
from pathlib import Path

from twopass_kd.config.cli import errors_on_one_line, scoring_parser
from twopass_kd.config.load import experiment_folder, load_config
from twopass_kd.report.collect import collect
from twopass_kd.report.render import write_reports


def get_parser() -> argparse.ArgumentParser:
    parser = scoring_parser(
        "report",
        "Write <exp-dir>/<conf name>/report.html and report.md out of results.json (which "
        "twopass_kd.bin.score makes), the training metrics and the student's transcripts.",
    )
    parser.add_argument(
        "--results-md", type=Path, metavar="FILE", help="also put it into the recipe's RESULTS.md there"
    )
    parser.add_argument("--command", help="the command that made the run, to be shown (default: run.sh with this conf)")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    with errors_on_one_line("report"):
        cfg = load_config(args.conf, args.overrides)
        experiment = experiment_folder(cfg, args.exp_dir)
        report = collect(cfg, experiment, args.conf, args.overrides, args.command)
        paths = write_reports(report, experiment, args.results_md)
    for path in paths:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
