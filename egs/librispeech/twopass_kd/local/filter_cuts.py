#!/usr/bin/env python3
"""Stage 2c: leave training and development cuts out that have more tokens than frames, as no loss can align them.

Test parts keep their cuts: nothing is aligned there, and a hard utterance belongs into the error rate. Each call starts
from all computed cuts, so that another vocabulary brings back what the last one left out.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lhotse import load_manifest_lazy
from lhotse.cut import Cut
from tqdm import tqdm

from command import make_parser, run
from left_out import LeftOut, read_left_out, write_left_out
from prepare_manifests import save_manifest
from twopass_kd.config.load import largest_subsampling_factor
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.data.cut_lines import manifest_lines
from twopass_kd.data.tokenizer import Tokenizer, open_tokenizer, too_many_tokens
from twopass_kd.files.layout import cuts_path, features_dir

TOO_MANY_TOKENS = "more tokens than frames"


def filter_part(data_dir: Path, part: str, tokenizer: Tokenizer, subsampling_factor: int) -> tuple[int, int]:
    """Leave cuts with more tokens than encoder frames out of a part's manifest; list them in left_out.tsv.

    Returns:
      How many cuts were left out, and of how many.
    Raises:
      ConfigError: stage 2a has not run.
    """
    everything = features_dir(data_dir, part) / "cuts.jsonl.gz"
    if not everything.is_file():
        raise ConfigError(f"`--data-dir` ({data_dir}) must hold features of `{part}`; run local/compute_fbank.py first")
    cuts = load_manifest_lazy(everything)
    dropped, total = [], 0
    for cut in tqdm(cuts, desc=f"Fitting {part}", unit="cut", leave=False):
        total += 1
        num_tokens = len(tokenizer.encode([cut.supervisions[0].text])[0])
        if too_many_tokens(cut.num_frames, num_tokens, subsampling_factor):
            dropped.append(cut.id)
    before = read_left_out(data_dir)
    rows = [row for row in before if row.part != part or not row.reason.startswith(TOO_MANY_TOKENS)]
    reason = f"{TOO_MANY_TOKENS} (BPE {tokenizer.vocab_size}, subsampling {subsampling_factor})"
    rows += [LeftOut(cut_id, part, reason) for cut_id in dropped]
    public, leave_out = cuts_path(data_dir, part), frozenset(dropped)

    def fits(cut: Cut) -> bool:
        return cut.id not in leave_out

    if rows != before or total - len(dropped) != sum(1 for _ in manifest_lines(public)):
        write_left_out(data_dir, rows)
        save_manifest(cuts.filter(fits), public)
    return len(dropped), total


def filter_cuts(cfg: Config, data_dir: Path) -> None:
    """Stage 2c for a config.

    Raises:
      ConfigError: an earlier stage is missing, or more than `corpus.max_left_out` of a part is left out.
    """
    tokenizer = open_tokenizer(cfg, data_dir)
    factor = largest_subsampling_factor(cfg)
    for part in dict.fromkeys([*cfg.corpus.train_parts, *cfg.corpus.dev_parts]):
        dropped, total = filter_part(data_dir, part, tokenizer, factor)
        logging.info("%s: %d of %d cuts left out: %s", part, dropped, total, TOO_MANY_TOKENS)
        if dropped > cfg.corpus.max_left_out * total:
            raise ConfigError(
                f"`corpus.max_left_out` ({cfg.corpus.max_left_out:g}) must be at least {dropped / total:.3g} for part"
                f" `{part}`: {dropped} of {total} cuts have more tokens than frames; raise it, raise"
                " `tokens.vocab_size` or lower `subsampling_factor`"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="what stages 2a and 2b left")
    return run(parser, argv, lambda cfg, args: filter_cuts(cfg, args.data_dir))


if __name__ == "__main__":
    sys.exit(main())
