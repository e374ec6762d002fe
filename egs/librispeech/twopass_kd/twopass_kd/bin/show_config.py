"""Shows a config file with its base and all defaults filled in, as YAML.

    python -m twopass_kd.bin.show_config --conf conf/mini.yaml

key=value words behind it replace settings of the file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from twopass_kd.config.load import config_to_yaml, load_config
from twopass_kd.config.schema import ConfigError


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="show_config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conf", type=Path, required=True, help="the experiment's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        print(config_to_yaml(load_config(args.conf, args.overrides)).rstrip())
    except ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
