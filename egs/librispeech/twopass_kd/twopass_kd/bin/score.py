"""Stage 9, first half: score what stage 8 decoded and write `results.json`."""

import argparse

from twopass_kd.config.cli import errors_on_one_line, scoring_parser
from twopass_kd.config.load import experiment_folder, load_config
from twopass_kd.scoring.results import build_results, ignored_systems, write_results
from twopass_kd.scoring.summary import summary_text


def get_parser() -> argparse.ArgumentParser:
    return scoring_parser(
        "score",
        "WER with 95% bootstrap intervals, sizes of every decoded system, verdicts on claims. "
        "Reads <exp-dir>/<conf name>/decode/, writes <exp-dir>/<conf name>/results.json and prints the table.",
    )


def main() -> None:
    args = get_parser().parse_args()
    with errors_on_one_line("score"):
        cfg = load_config(args.conf, args.overrides)
        experiment = experiment_folder(cfg, args.exp_dir)
        ignored = ignored_systems(cfg, experiment)
        if ignored:
            print(f"ignored: {', '.join(ignored)} (decoded, but not a `report_as` of {args.conf})")
        results = build_results(cfg, experiment)
        write_results(results, experiment / "results.json")
    print(summary_text(results))


if __name__ == "__main__":
    main()
