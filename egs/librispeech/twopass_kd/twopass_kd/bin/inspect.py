"""Print what checkpoints are: phase, progress, sizes, results, and where, when and how they were made.

python3 -m twopass_kd.bin.inspect exp/mini/student/deep/final.pt
python3 -m twopass_kd.bin.inspect --config exp/mini/student/deep/final.pt     the whole config, as YAML
"""

import argparse
import importlib.util
import logging
import os
import sys
from pathlib import Path

if __name__ == "inspect":
    # A program of this folder was run by its path, so that this file is found instead of Python's own `inspect`.
    spec = importlib.util.spec_from_file_location("inspect", Path(os.__file__).with_name("inspect.py"))
    sys.modules["inspect"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["inspect"])
else:
    import yaml

    from twopass_kd.config.cli import exit_status
    from twopass_kd.config.environment import setup_logging
    from twopass_kd.models.checkpoint import CheckpointError, load_checkpoint
    from twopass_kd.training.describe_checkpoint import describe_checkpoint


def show(paths: list[Path], whole_config: bool) -> None:
    """Print all `paths`; those that cannot be read or described are told at the end."""
    errors: list[str] = []
    for path in paths:
        try:
            if whole_config:
                print(yaml.safe_dump(load_checkpoint(path)["config"], sort_keys=False), end="")
            else:
                print(
                    "\n".join(
                        [str(path), *(f"  {title:12s} {text}" for title, text in describe_checkpoint(path).items())]
                    )
                )
        except ValueError as e:
            errors.append(str(e))
    for error in errors[:-1]:
        logging.error("%s", error)
    if errors:
        raise CheckpointError(errors[-1])


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="final.pt, epoch-N.pt, ...")
    parser.add_argument("--config", action="store_true", help="print the config with which it was trained, as YAML")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    setup_logging()
    return exit_status(lambda: show(args.checkpoints, args.config))


if __name__ == "__main__":
    sys.exit(main())
