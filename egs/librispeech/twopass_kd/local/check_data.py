#!/usr/bin/env python3
"""Checks data that run.sh did not make (icefall's, say) before anything is trained on it, and names all that is wrong.

It looks for the manifest of each part that the stages read, the tokens and MUSAN, and reads a few dozen cuts of each
manifest with their features. Nothing is written. run.sh calls it before the first stage that reads data; by hand:

    python3 local/check_data.py --conf conf/librispeech_100h.yaml --data-dir ICEFALL/egs/librispeech/ASR/data
"""

import argparse
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from feature_cuts import cuts_path
from twopass_kd.config import Config, FeaturesConfig, load_config
from twopass_kd.cut_lines import open_lines, parse_line, paths_root
from twopass_kd.noise import musan_cuts_path
from twopass_kd.tokenizer import Tokenizer

LOG_MEL = ("kaldi-fbank", "fbank", "kaldifeat-fbank", "kaldi-native-fbank")  # as Kaldi has them
FRAME_SHIFT = 0.01  # seconds
MAX_UNK = 0.01  # share of <unk> among the tokens of a part that is still taken for an accident
STAGES = range(3, 11)  # that read what stage 2 leaves
_TOLERANCE = 2e-3  # seconds, as in lhotse's validate_for_asr
_MAKE = "run.sh --stage 2 makes it, or stage {stage} of icefall's prepare.sh"


@dataclass
class Sample:
    """Some cuts of a manifest.

    Attributes:
      cuts: the first ones and, further on, ever rarer ones.
      size: of the manifest.
      perturbed: how many of its cuts are copies at another speed.
    """

    cuts: List[Cut]
    size: int = 0
    perturbed: int = 0


def read_sample(path: Path) -> Sample:
    """The first cuts of a manifest and ever rarer ones further on.

    Raises:
      OSError, EOFError, zlib.error, ValueError: it is not a gzipped manifest of cuts, or is cut short.
    """
    sample, wanted = Sample([]), 4
    for number, line in enumerate(open_lines(path)):
        sample.size += 1
        sample.perturbed += b"_sp" in line[:200].split(b'"start"')[0]
        if number < 4 or number == wanted:
            sample.cuts.append(parse_line(line))
            wanted = max(4, number + max(1, number // 3))
    return sample


def cut_problems(cut: Cut, features: FeaturesConfig, root: Path, has_text: bool = True) -> Iterator[str]:
    """What is wrong with a cut and its features; says both sides, and what to do.

    Args:
      root: folder that relative paths count from.
      has_text: whether it is to have a transcript (MUSAN has none).
    """
    if has_text:
        yield from _supervision_problems(cut)
    yield from list(_feature_problems(cut, features)) or _storage_problems(cut, root)


def _feature_problems(cut: Cut, features: FeaturesConfig) -> Iterator[str]:
    if not isinstance(cut, DataCut) or not cut.has_features:
        yield f"must be a single cut with features, not a {type(cut).__name__} without: do `lhotse feat extract-cuts`"
        return
    stored = cut.features
    if stored.type not in LOG_MEL:
        yield f"features must be log-mel filter banks ({', '.join(LOG_MEL)}), not {stored.type}; compute them anew"
    if stored.num_features != features.num_mel_bins:
        yield (
            f"has {stored.num_features} values per frame and `features.num_mel_bins` is {features.num_mel_bins};"
            f" say features.num_mel_bins={stored.num_features}"
        )
    if stored.sampling_rate != features.sampling_rate:
        yield (
            f"was computed at {stored.sampling_rate} Hz and `features.sampling_rate` is {features.sampling_rate};"
            f" say features.sampling_rate={stored.sampling_rate}"
        )
    if abs(stored.frame_shift - FRAME_SHIFT) > 1e-6:
        yield f"must have a frame each {FRAME_SHIFT} s, not {stored.frame_shift} s; compute the features anew"


def _supervision_problems(cut: Cut) -> Iterator[str]:
    if len(cut.supervisions) != 1:
        yield f"must have one supervision, not {len(cut.supervisions)}; do `lhotse cut trim-to-supervisions` first"
        return
    (speech,) = cut.supervisions
    if not (speech.text or "").strip():
        yield "has no text"
    if abs(speech.start) > _TOLERANCE or speech.end > cut.duration + _TOLERANCE:
        yield (
            f"is {cut.duration} s long and its supervision lasts from {speech.start} to {speech.end} s, but must begin"
            " with the cut and end in it; do `lhotse cut trim-to-supervisions` first"
        )


def _storage_problems(cut: DataCut, root: Path) -> Iterator[str]:
    relative = cut.features.storage_path
    path = root / relative
    if not cut.features.storage_type.startswith("memory") and not path.exists():
        where = "" if Path(relative).is_absolute() else (
            f": `{relative}` counts from the folder that --data-dir lies in; name the data folder as its recipe does"
            " (.../ASR/data)"
        )  # fmt: skip
        yield f"{path} is missing{where}"
        return
    try:
        values = cut.with_features_path_prefix(root).load_features()
    except Exception as e:  # each kind of storage has errors of its own
        yield f"features in {path} cannot be read ({type(e).__name__}: {e}); compute them anew"
        return
    frames = round(cut.duration / FRAME_SHIFT)
    if abs(len(values) - frames) > 2 or not np.isfinite(values).all():
        yield f"must have about {frames} frames of finite features, and has {values.shape}; compute them anew"


def unk_problems(cuts: Sequence[Cut], tokenizer: Tokenizer) -> Iterator[str]:
    """Says so where more than MAX_UNK of the tokens of the cuts' texts are <unk>."""
    texts = [cut.supervisions[0].text for cut in cuts if cut.supervisions and cut.supervisions[0].text]

    def share(variants: Sequence[str]) -> float:
        tokens = [token for ids in tokenizer.encode(list(variants)) for token in ids]
        return sum(token == tokenizer.unk_id for token in tokens) / max(1, len(tokens))

    found = share(texts)
    if found > MAX_UNK:
        upper = share([text.upper() for text in texts]) < found / 2
        advice = "write the transcripts in upper case" if upper else "take the bpe.model of these transcripts"
        first = next(text for text in texts if share([text]) > MAX_UNK)
        yield f"{100 * found:.0f}% of the tokens of its texts are <unk> (e.g. {first!r}); {advice}"


def lang_problems(cfg: Config, data_dir: Path) -> Iterator[str]:
    """What is wrong with the tokens."""
    wanted = cfg.tokens.vocab_size
    lang_dir = Path(data_dir) / f"lang_bpe_{wanted}"
    if not lang_dir.is_dir():
        sizes = [p.name.rpartition("_")[2] for p in sorted(Path(data_dir).glob("lang_bpe_*"))]
        other = f"; say tokens.vocab_size={sizes[0]} for lang_bpe_{sizes[0]}, which is there" if sizes else ""
        yield f"{lang_dir} is missing, and `tokens.vocab_size` is {wanted}; {_MAKE.format(stage=5)}{other}"
        return
    try:
        size = Tokenizer(lang_dir).vocab_size
    except ValueError as e:
        yield f"{e}; or stage 5 of icefall's prepare.sh"
        return
    if size != wanted:
        yield f"{lang_dir / 'bpe.model'} has {size} pieces and `tokens.vocab_size` is {wanted}; one must be the other"


def manifest_problems(
    name: str, path: Path, sample: Sample, cfg: Config, root: Path, tokenizer: Optional[Tokenizer]
) -> Iterator[str]:
    """What is wrong with the cuts of a manifest: a line for each kind, with the first cut that has it."""
    found: Dict[str, List[Tuple[str, str]]] = {}
    for cut in sample.cuts:
        for problem in cut_problems(cut, cfg.features, root, has_text=name != "musan"):
            found.setdefault(re.sub(r"\d+|\(.*\)", "", problem), []).append((cut.id, problem))
    for same in found.values():
        cut_id, problem = same[0]
        yield f"{path.name}, {cut_id}: {problem} ({len(same)} of {len(sample.cuts)} cuts looked at)"
    if not sample.cuts:
        yield f"{path} has no cuts; remove it, then {_MAKE.format(stage=4 if name == 'musan' else 3)}"
    if tokenizer is not None and name != "musan":
        for problem in unk_problems(sample.cuts, tokenizer):
            yield f"{path.name}: {problem}"


def parts_read(cfg: Config, stages: Sequence[int]) -> List[str]:
    """The parts of the corpus that stages of run.sh read, and `musan`."""
    trains, decodes = any(3 <= stage <= 7 for stage in stages), any(stage in (8, 10) for stage in stages)
    corpus = cfg.corpus
    parts = [*(corpus.train_parts if trains else ()), *corpus.dev_parts, *(corpus.test_parts if decodes else ())]
    return [*dict.fromkeys(parts), *(["musan"] if corpus.musan and trains else [])]


def check_data(cfg: Config, data_dir: Path, stages: Sequence[int] = STAGES) -> List[str]:
    """All that is wrong with the data of a config; prints what it finds in each manifest.

    Args:
      stages: of run.sh, for which it must be right.
    Returns:
      One line for each problem; none where the data can be trained on.
    """
    root, problems = paths_root(data_dir), list(lang_problems(cfg, data_dir))
    tokenizer = None if problems else Tokenizer(Path(data_dir) / f"lang_bpe_{cfg.tokens.vocab_size}")
    perturbed = 0
    parts = parts_read(cfg, stages)
    for name in parts:
        path = musan_cuts_path(data_dir) if name == "musan" else cuts_path(data_dir, name)
        if not path.is_file():
            stage, other = (4, "corpus.musan=false") if name == "musan" else (3, f"a `corpus` without {name}")
            problems.append(f"{path} is missing; {_MAKE.format(stage=stage)}; or say {other}")
            continue
        try:
            sample = read_sample(path)
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as e:
            problems.append(f"{path} is not a whole manifest of cuts ({type(e).__name__}: {e}); make it anew")
            continue
        copies = f", {sample.perturbed} of them at another speed" if sample.perturbed else ""
        print(f"{name}: {sample.size} cuts{copies}; looked at {len(sample.cuts)}")
        perturbed += sample.perturbed if name in cfg.corpus.train_parts else 0
        problems += manifest_problems(name, path, sample, cfg, root, tokenizer)
    if cfg.corpus.speed_perturb and not perturbed and {*cfg.corpus.train_parts} <= {*parts}:
        print(
            f"warning: `corpus.speed_perturb` ({list(cfg.corpus.speed_perturb)}) is for stage 2, and the cuts in"
            f" {data_dir} have no copies at another speed: they are trained on without"
        )
    return problems


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True, help="experiment YAML")
    parser.add_argument("--data-dir", type=Path, required=True, help="has fbank/ and lang_bpe_<V>/")
    parser.add_argument("--stage", type=int, default=STAGES[0], help="first stage to check for (default: 3)")
    parser.add_argument("--stop-stage", type=int, default=STAGES[-1], help="last one (default: 10)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    try:
        problems = check_data(
            load_config(args.conf, args.overrides), args.data_dir, range(args.stage, args.stop_stage + 1)
        )
    except ValueError as e:
        problems = [str(e)]
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        print(f"error: {args.data_dir} cannot be used as it is:{lines}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
