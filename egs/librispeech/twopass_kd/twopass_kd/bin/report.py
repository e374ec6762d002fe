"""Stage 9, second half: write `report.html` and `report.md` from `results.json`."""

import argparse
import sys
from pathlib import Path

from twopass_kd.config.load import experiment_folder, load_config
from twopass_kd.report.collect import collect
from twopass_kd.report.render import write_reports


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twopass_kd.bin.report",
        description="Write <exp-dir>/<conf name>/report.html and report.md out of results.json (which "
        "twopass_kd.bin.score makes), the training metrics and the student's transcripts.",
    )
    parser.add_argument("--conf", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="where experiments are kept (default: exp)")
    parser.add_argument(
        "--results-md", type=Path, metavar="FILE", help="also put it into the recipe's RESULTS.md there"
    )
    parser.add_argument("--command", help="the command that made the run, to be shown (default: run.sh with this conf)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as given to the other stages")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    try:
        cfg = load_config(args.conf, args.overrides)
        experiment = experiment_folder(cfg, args.exp_dir)
        report = collect(cfg, experiment, args.conf, args.overrides, args.command)
        paths = write_reports(report, experiment, args.results_md)
    except ValueError as e:
        sys.exit(f"report: error: {e}")
    except OSError as e:
        sys.exit(f"report: error: {e}; check that path or free disk space, run the same command again")
    for path in paths:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
