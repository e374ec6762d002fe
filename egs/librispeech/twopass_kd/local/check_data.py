#!/usr/bin/env python3
"""Checks data that run.sh did not make (icefall's, say) before anything is trained on it, and names all that is wrong.

It looks for the manifest of each part that the stages read, the tokens and MUSAN, at every cut that is decoded (for
stage 10 also for its audio), at a few dozen others (training looks at each of them itself) and at the features of a few
dozen of each manifest. Nothing is written. run.sh calls it before the first stage that reads data; by hand:

    python3 local/check_data.py --conf conf/librispeech_100h.yaml --data-dir ICEFALL/egs/librispeech/ASR/data
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from command import make_parser, run
from twopass_kd.config.load import exported_systems
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_dataset import load_features
from twopass_kd.data.cut_checks import UniqueIds, cut_faults
from twopass_kd.data.cut_lines import features_path, is_in_files, manifest_lines, parse_line, paths_root, place_files
from twopass_kd.data.tokenizer import Tokenizer, open_tokenizer
from twopass_kd.files.layout import cuts_path, lang_path, musan_cuts_path

MAX_UNK = 0.01  # share of <unk> among the tokens of a part that is still taken for an accident
STAGES = range(3, 11)  # that read what stage 2 leaves
_MAKE = "stage {stage} of icefall's prepare.sh makes it, or stages 0 to 2 of run.sh in another --data-dir"


@dataclass
class Sample:
    """Cuts of a manifest that are looked at.

    Attributes:
      cuts: all of them, or as `opened`.
      opened: whose features are read: the first ones and, further on, ever rarer ones.
      size: of the manifest.
      perturbed: how many of its cuts are copies at another speed.
      problem: the first line that is no cut, or id that comes twice; nothing is looked at after it.
    """

    cuts: list[Cut]
    opened: list[Cut]
    size: int = 0
    perturbed: int = 0
    problem: str | None = None


def read_sample(path: Path, every: bool) -> Sample:
    """Some cuts of a manifest.

    Args:
      every: look at every cut.
    Raises:
      ValueError: it is not a gzipped manifest, or is cut short.
    """
    sample, wanted, unique = Sample([], []), 4, UniqueIds()
    for number, line in enumerate(manifest_lines(path)):
        sample.size += 1
        sample.perturbed += re.search(rb'^\{"id": "[^"]*_sp\d', line) is not None
        opened = number < 4 or number == wanted
        if opened:
            wanted = max(4, number + max(1, number // 3))
        if (every or opened) and sample.problem is None:
            try:
                cut = parse_line(line)
                unique.add(str(cut.id), path, number + 1)
            except ValueError as e:
                sample.problem = f"line {number + 1}: {e}"
                continue
            sample.cuts.append(cut)
            sample.opened += [cut] if opened else []
    return sample


def storage_problems(cut: DataCut, data_dir: Path) -> Iterator[str]:
    """What is wrong with the stored features of a cut, which has some."""
    relative = cut.features.storage_path
    path = features_path(data_dir, relative)
    if is_in_files(cut.features) and not path.exists():
        where = "" if Path(relative).is_absolute() else (
            f": `{relative}` counts from the folder that --data-dir lies in; name the data folder as its recipe does"
            " (.../ASR/data)"
        )  # fmt: skip
        yield f"{path} is missing{where}"
        return
    try:
        load_features(place_files(cut, data_dir))
    except ValueError as e:
        yield str(e)


def audio_problem(cut: DataCut, data_dir: Path) -> str | None:
    """What keeps stage 10 from the audio of a cut: devices are given audio, not features."""
    sources = cut.recording.sources if cut.has_recording else []
    files = [paths_root(data_dir) / source.source for source in sources if source.type == "file"]
    missing = next((path for path in files if not path.exists()), None)
    if files and missing is None:
        return None
    what = f"its audio ({missing}) is missing" if missing else "has no audio file in its recording"
    return f"{what}, which stage 10 recognises; bring it back, or stop before (--stop-stage 9)"


def sample_texts(cuts: Sequence[Cut]) -> list[str]:
    """The texts of those cuts that have one."""
    texts = [cut.supervisions[0].text for cut in cuts if cut.supervisions]
    return [text for text in texts if isinstance(text, str) and text]


def unk_problems(cuts: Sequence[Cut], tokenizer: Tokenizer) -> Iterator[str]:
    """Says so where more than MAX_UNK of the tokens of the cuts' texts are <unk>."""
    texts = sample_texts(cuts)

    def share(variants: Sequence[str]) -> float:
        tokens = [token for ids in tokenizer.encode(list(variants)) for token in ids]
        return sum(token == tokenizer.unk_id for token in tokens) / max(1, len(tokens))

    found = share(texts)
    if found > MAX_UNK:
        upper = share([text.upper() for text in texts]) < found / 2
        advice = "write the transcripts in upper case" if upper else "take the bpe.model of these transcripts"
        first = next(text for text in texts if share([text]) > MAX_UNK)
        yield f"{100 * found:.0f}% of the tokens of its texts are <unk> (e.g. {first!r}); {advice}"


def spelling_notes(cuts: Sequence[Cut], tokenizer: Tokenizer) -> Iterator[str]:
    """Says so where texts have letters that no token spells."""
    texts = sample_texts(cuts)
    letters = [found for found in map(tokenizer.not_spelt, texts) if found]
    if letters:
        yield (
            f"{len(letters)} of {len(texts)} texts looked at have letters that no token spells"
            f" ({' '.join(sorted({*''.join(letters)}))}); their words count as errors"
        )


def lang_problems(cfg: Config, data_dir: Path) -> Iterator[str]:
    """What is wrong with the tokens."""
    wanted = cfg.tokens.vocab_size
    lang_dir = lang_path(data_dir, wanted)
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
    name: str,
    path: Path,
    sample: Sample,
    cfg: Config,
    data_dir: Path,
    tokenizer: Tokenizer | None,
    needs_audio: bool,
) -> Iterator[str]:
    """What is wrong with the cuts of a manifest: a line for each kind, with the first cut that has it."""
    found: dict[str, list[tuple[str, str]]] = {}
    faulty = set()

    def add(cut: Cut, problem: str) -> None:
        kind = re.sub(r"\d+|\(.*\)", "", problem.replace(str(cut.id), ""))
        found.setdefault(kind, []).append((cut.id, problem))
        faulty.add(id(cut))

    for cut in sample.cuts:
        for problem in cut_faults(cut, cfg.features, has_text=name != "musan"):
            add(cut, problem)
        problem = audio_problem(cut, data_dir) if needs_audio and id(cut) not in faulty else None
        if problem is not None:
            add(cut, problem)
    for cut in sample.opened:
        for problem in storage_problems(cut, data_dir) if id(cut) not in faulty else ():
            add(cut, problem)
    for same in found.values():
        cut_id, problem = same[0]
        yield f"{path.name}, {cut_id}: {problem} ({len(same)} of {len(sample.cuts)} cuts looked at)"
    if sample.problem is not None:
        yield f"{path.name}, {sample.problem}"
    elif not sample.cuts:
        yield f"{path} has no cuts; remove it, then {_MAKE.format(stage=4 if name == 'musan' else 3)}"
    if tokenizer is not None and name != "musan":
        for problem in unk_problems(sample.cuts, tokenizer):
            yield f"{path.name}: {problem}"


def parts_read(cfg: Config, stages: Sequence[int]) -> list[str]:
    """The parts of the corpus that stages of run.sh read, and `musan`."""
    trains, decodes = any(3 <= stage <= 7 for stage in stages), any(stage in (8, 10) for stage in stages)
    corpus = cfg.corpus
    parts = [*(corpus.train_parts if trains else ()), *corpus.dev_parts, *(corpus.test_parts if decodes else ())]
    return [*dict.fromkeys(parts), *(["musan"] if corpus.musan and trains else [])]


def check_data(cfg: Config, data_dir: Path, stages: Sequence[int] = STAGES) -> list[str]:
    """All that is wrong with the data of a config; prints what it finds in each manifest.

    Args:
      stages: of run.sh, for which it must be right.
    Returns:
      One line for each problem; none where the data can be trained on.
    """
    problems = list(lang_problems(cfg, data_dir))
    tokenizer = None if problems else open_tokenizer(cfg, data_dir)
    perturbed = 0
    parts = parts_read(cfg, stages)
    decoded = {*cfg.corpus.dev_parts, *cfg.corpus.test_parts}
    for name in parts:
        path = musan_cuts_path(data_dir) if name == "musan" else cuts_path(data_dir, name)
        if not path.is_file():
            stage, other = (4, "corpus.musan=false") if name == "musan" else (3, f"a `corpus` without {name}")
            problems.append(f"{path} is missing; {_MAKE.format(stage=stage)}; or say {other}")
            continue
        try:
            sample = read_sample(path, every=name in decoded)
        except (OSError, ValueError) as e:
            problems.append(str(e))
            continue
        copies = f", {sample.perturbed} of them at another speed" if sample.perturbed else ""
        print(f"{name}: {sample.size} cuts{copies}; looked at {len(sample.cuts)}")
        for note in spelling_notes(sample.cuts, tokenizer) if tokenizer and name != "musan" else ():
            print(f"{name}: {note}")
        perturbed += sample.perturbed if name in cfg.corpus.train_parts else 0
        needs_audio = 10 in stages and name in decoded and bool(exported_systems(cfg))
        problems += manifest_problems(name, path, sample, cfg, data_dir, tokenizer, needs_audio)
    if cfg.corpus.speed_perturb and not perturbed and {*cfg.corpus.train_parts} <= {*parts}:
        print(
            f"warning: `corpus.speed_perturb` ({list(cfg.corpus.speed_perturb)}) is for stage 2, and the cuts in"
            f" {data_dir} have no copies at another speed: they are trained on without"
        )
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="has fbank/ and lang_bpe_<V>/")
    parser.add_argument("--stage", type=int, default=STAGES[0], help="first stage to check for (default: 3)")
    parser.add_argument("--stop-stage", type=int, default=STAGES[-1], help="last one (default: 10)")

    def work(cfg: Config, args: argparse.Namespace) -> None:
        try:
            problems = check_data(cfg, args.data_dir, range(args.stage, args.stop_stage + 1))
        except (ValueError, OSError) as e:
            problems = [str(e)]
        if problems:
            raise ValueError("\n  - ".join([f"{args.data_dir} cannot be used as it is:", *problems]))

    return run(parser, argv, work)


if __name__ == "__main__":
    sys.exit(main())
