"""What the programs of this folder share: `--conf`, `key=value`, and how a mistake is told."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from twopass_kd.config.load import load_config
from twopass_kd.config.schema import Config, ConfigError


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with `--conf`; the program's own options are added to it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True, help="experiment YAML")
    return parser


def add_num_jobs(parser: argparse.ArgumentParser) -> None:
    """The option `--nj`."""
    parser.add_argument("--nj", type=int, default=2, help="processes, of one thread each (default: 2)")


def run(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, work: Callable[[Config, argparse.Namespace], None]
) -> int:
    """Do the work of a program.

    Args:
      argv: its arguments; None: those of the command line.
      work: called with the config, overrides applied, and the options.
    Returns:
      The exit status; 1 after a ValueError or OSError, whose message goes to standard error.
    """
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings in place of the YAML's")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        if getattr(args, "nj", 1) < 1:
            raise ConfigError(f"`nj` ({args.nj}) must be at least 1")
        work(load_config(args.conf, args.overrides), args)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0
