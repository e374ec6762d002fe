"""What the programs of the stages share: their common options, and how they end."""

import argparse
import logging
from pathlib import Path
from typing import Callable


def experiment_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser with --conf, --data-dir, --exp-dir and overrides (`example` shows one), to which options are added."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True, help="YAML of the experiment, e.g. conf/mini.yaml")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="has fbank/ and lang_bpe_<V>/ (default: data)"
    )
    parser.add_argument("--exp-dir", type=Path, default=Path("exp"), help="has <conf>/<system>/<phase>/ (default: exp)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"e.g. {example}")
    return parser


def exit_status(job: Callable[[], object]) -> int:
    """Run `job`: 0, or 1 after logging what the user must put right (ValueError, OSError), or 130 after Ctrl-C."""
    try:
        job()
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as e:
        logging.error("%s", e)
        return 1
    return 0
