"""Stage 9, first half: score what stage 8 decoded and write `results.json`."""

import argparse
import sys
from pathlib import Path

from twopass_kd.config.load import experiment_folder, load_config
from twopass_kd.scoring.results import build_results, ignored_systems, write_results
from twopass_kd.scoring.summary import summary_text


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twopass_kd.bin.score",
        description="WER with 95% bootstrap intervals, sizes of every decoded system, verdicts on claims. "
        "Reads <exp-dir>/<conf name>/decode/, writes <exp-dir>/<conf name>/results.json and prints the table.",
    )
    parser.add_argument("--conf", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="where experiments are kept (default: exp)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. decode.bootstrap_samples=1000")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    try:
        cfg = load_config(args.conf, args.overrides)
        experiment = experiment_folder(cfg, args.exp_dir)
        ignored = ignored_systems(cfg, experiment)
        if ignored:
            print(f"ignored: {', '.join(ignored)} (decoded, but not a `report_as` of {args.conf})")
        results = build_results(cfg, experiment)
        write_results(results, experiment / "results.json")
    except ValueError as e:
        sys.exit(f"score: error: {e}")
    except OSError as e:
        sys.exit(f"score: error: {e}; check that path or free disk space, run the same command again")
    print(summary_text(results))


if __name__ == "__main__":
    main()
