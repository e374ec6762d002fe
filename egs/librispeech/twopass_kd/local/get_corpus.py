#!/usr/bin/env python3
"""Makes, downloads or finds the corpus of an experiment, as its `corpus.kind` says, and MUSAN where it wants that.

python3 local/get_corpus.py --conf conf/mini.yaml --corpus-dir download/mini/LibriSpeech
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import an4_corpus
import download_corpus
import synthesize_corpus
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import Config, ConfigError


def check_folder(cfg: Config, corpus_dir: Path) -> None:
    """Raises ConfigError where a part is not in the user's folder."""
    for part in [*cfg.corpus.train_parts, *cfg.corpus.dev_parts, *cfg.corpus.test_parts]:
        if not (corpus_dir / part).is_dir():
            raise ConfigError(
                f"`--corpus-dir` ({corpus_dir}) must have a folder {part}, which is a part of the config; correct it,"
                " or name the parts that are there in the YAML"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conf", type=Path, required=True, help="experiment YAML")
    parser.add_argument("--corpus-dir", type=Path, required=True, help="has a folder for each part")
    parser.add_argument("--nj", type=int, default=1, help="processes side by side (default: 1)")
    parser.add_argument("overrides", nargs="*", help="key=value")
    args = parser.parse_args(argv)
    common = ["--conf", str(args.conf), "--corpus-dir", str(args.corpus_dir), *args.overrides]
    try:
        cfg = load_config(args.conf, args.overrides)
        if cfg.corpus.kind == "an4":
            an4_corpus.prepare_an4(args.corpus_dir)
        if cfg.corpus.kind in ("an4", "folder"):
            check_folder(cfg, args.corpus_dir)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    if cfg.corpus.kind == "mini":
        status = synthesize_corpus.main([*common, "--nj", str(args.nj)])
        if status:
            return status
    # It leaves alone what is not LibriSpeech's.
    if cfg.corpus.kind in ("librispeech", "mini_librispeech") or cfg.corpus.musan:
        return download_corpus.main(common)
    return 0


if __name__ == "__main__":
    sys.exit(main())
