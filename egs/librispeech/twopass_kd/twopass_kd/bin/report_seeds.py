"""Stage 9 of several seeds: score them together, write `seeds.json` and its report."""

import argparse
from dataclasses import replace
from pathlib import Path

from twopass_kd.config.cli import errors_on_one_line, scoring_parser
from twopass_kd.config.load import experiment_folder, load_config
from twopass_kd.config.schema import Config
from twopass_kd.files.json_model import write_json
from twopass_kd.report.collect import Report, collect, run_command
from twopass_kd.report.render import write_seeds_reports
from twopass_kd.scoring.seeds import build_seeds
from twopass_kd.scoring.summary import seeds_text


def get_parser() -> argparse.ArgumentParser:
    parser = scoring_parser(
        "report_seeds",
        "Mean and range of the WERs over seeds, verdicts on claims over all of them. Reads "
        "<exp-dir>/<conf name>/seed-<n>/decode/, writes seeds.json, seeds.html and seeds.md in <exp-dir>/<conf name>/.",
    )
    parser.add_argument(
        "--finished", type=int, nargs="+", metavar="SEED", help="of `seeds` those decoded (default: all)"
    )
    parser.add_argument(
        "--results-md",
        type=Path,
        metavar="FILE",
        help="also put it into the recipe's RESULTS.md there, with what the first seed measured by stage 10 is on "
        "the device",
    )
    parser.add_argument(
        "--command", help="the command that made the runs, to be shown (default: run.sh with this conf)"
    )
    return parser


def main() -> None:
    args = get_parser().parse_args()
    with errors_on_one_line("report_seeds"):
        cfg = load_config(args.conf, args.overrides)
        if not cfg.seeds:
            raise ValueError("`seeds` ([]) must list the seeds, e.g. seeds=[42, 43, 44]")
        folder = args.exp_dir / cfg.name
        results = build_seeds(cfg, args.exp_dir, args.finished or cfg.seeds)
        write_json(folder / "seeds.json", results, ensure_ascii=False)
        command = args.command or run_command(args.conf, args.overrides)
        device = _on_device(cfg, args) if args.results_md else None
        paths = write_seeds_reports(results, folder, command, args.results_md, device)
    print(seeds_text(results))
    for path in paths:
        print(f"wrote {path}")


def _on_device(cfg: Config, args: argparse.Namespace) -> Report | None:
    """Of the first seed that stage 10 has measured."""
    for seed in args.finished or cfg.seeds:
        experiment = experiment_folder(replace(cfg, seed=seed), args.exp_dir)
        if (experiment / "ondevice.json").is_file() and (experiment / "results.json").is_file():
            return collect(cfg, experiment, args.conf, args.overrides)
    return None


if __name__ == "__main__":
    main()
