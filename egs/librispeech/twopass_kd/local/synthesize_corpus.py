#!/usr/bin/env python3
"""Makes synthetic speech in LibriSpeech's folder layout, offline: stage 0 for `mini`.

Texts come from a small grammar (`grammar.py`), voices from espeak-ng (`voices.py`, `espeak.py`). Parts share neither
voices nor sentences. The same seed and counts give the same bytes with any number of processes.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile
from tqdm import tqdm

from command import add_num_jobs, make_parser, run
from espeak import Espeak
from grammar import draw_texts
from synthetic_audio import CLEAN_STYLE, NOISY_STYLE, SAMPLING_RATE, TRAIN_STYLE, Style, make_utterance, utterance_rng
from twopass_kd.config.schema import Config, ConfigError, SynthesisConfig
from twopass_kd.files.json_model import read_json
from voices import draw_voices, voice_sex

FORMAT = 3  # goes up when the same parameters would give other audio
# The accents of `digits` make its speakers other than those of `phrases`.
LANGUAGES = {"phrases": ("en-us",), "digits": ("en-gb-x-rp", "en-gb-scotland", "en-029")}
_MAX_CHAPTER = 50  # utterances


@dataclass(frozen=True)
class Parts:
    """Folder names of the parts: one for training, one for development, one or more for testing."""

    train: str
    dev: str
    test: tuple[str, ...]  # the second and later ones are noisier than the first


@dataclass(frozen=True)
class Chapter:
    """The utterances that one process makes in one go: one speaker, one part."""

    part: str
    speaker: int
    chapter: int
    language: str
    variant: str
    style: Style
    texts: tuple[str, ...]


def plan_corpus(synthesis: SynthesisConfig, parts: Parts) -> list[Chapter]:
    """Deal texts and voices out to parts, speakers and chapters.

    Raises:
      ValueError: more sentences or voices asked for than there are, or a part named twice.
    """
    names = [parts.train, parts.dev, *parts.test]
    if len(set(names)) != len(names):
        raise ValueError(f"`corpus` parts ({', '.join(names)}) must have different names")
    rng = random.Random(synthesis.seed)
    test_voices = ("num_test_voices", synthesis.num_test_voices)
    counts = [("num_train_voices", synthesis.num_train_voices), ("num_dev_voices", synthesis.num_dev_voices)]
    voices = draw_voices([*counts, *[test_voices for _ in parts.test]], rng)
    used: set = set()
    chapters: list[Chapter] = []
    speaker, chapter = 100, 1000
    for index in [*range(1, len(names)), 0]:  # training last: the small parts get their sentences whatever its size
        style = TRAIN_STYLE if index == 0 else CLEAN_STYLE if index <= 2 else NOISY_STYLE
        count = (synthesis.num_sentences, synthesis.num_dev)[index] if index < 2 else synthesis.num_test
        texts = draw_texts(synthesis.grammar, count, synthesis.num_fragments if index == 0 else 0, used, rng)
        rng.shuffle(texts)
        for place, variant in enumerate(voices[index]):
            speaker += 1
            own = texts[place :: len(voices[index])]
            language = rng.choice(LANGUAGES[synthesis.grammar])
            for start in range(0, len(own), _MAX_CHAPTER):
                chapter += 1
                some = tuple(own[start : start + _MAX_CHAPTER])
                chapters.append(Chapter(names[index], speaker, chapter, language, variant, style, some))
    return chapters


def _make_chapter(job: tuple[Path, int, Chapter]) -> tuple[int, float, int]:
    """Write one chapter; returns its number, its seconds and its number of utterances."""
    root, seed, chapter = job
    folder = root / chapter.part / str(chapter.speaker) / str(chapter.chapter)
    folder.mkdir(parents=True)
    espeak = Espeak()
    lines, alignments, seconds = [], [], 0.0
    for number, text in enumerate(chapter.texts):
        name = f"{chapter.speaker}-{chapter.chapter}-{number:04d}"
        rng = utterance_rng(seed, name)
        made = make_utterance(espeak, text, chapter.language, chapter.variant, chapter.style, rng)
        path = folder / f"{name}.flac"
        try:
            soundfile.write(path, made.samples, SAMPLING_RATE, subtype="PCM_16")
        except soundfile.LibsndfileError as e:
            raise OSError(f"{path} cannot be written ({e.error_string.rstrip('.')}); is the disk full?") from e
        seconds += len(made.samples) / SAMPLING_RATE
        lines.append(f"{name} {text}\n")
        alignments.append(alignment_line(name, text, made.words))
    transcript = folder / f"{chapter.speaker}-{chapter.chapter}.trans.txt"
    transcript.write_text("".join(lines), encoding="utf-8")
    alignment = folder / f"{chapter.speaker}-{chapter.chapter}.alignment.txt"
    alignment.write_text("".join(alignments), encoding="utf-8")
    return chapter.chapter, seconds, len(chapter.texts)


def alignment_line(name: str, text: str, words: Sequence[tuple[float, float]]) -> str:
    """When each word is said, in the form of LibriSpeech-Alignments: words and ends, a silence being an empty word."""
    symbols, ends = [], []
    for word, (start, end) in zip(text.split(), words):
        if start > (ends[-1] if ends else 0.0):
            symbols.append("")
            ends.append(start)
        symbols.append(word)
        ends.append(end)
    return f'{name} "{",".join(symbols)}" "{",".join(f"{end:.3f}" for end in ends)}"\n'


def _write_tables(root: Path, chapters: Sequence[Chapter], seconds: dict[int, float]) -> None:
    """SPEAKERS.TXT and CHAPTERS.TXT, with the columns of LibriSpeech's."""
    speakers: dict[int, list[Chapter]] = {}
    for chapter in chapters:
        speakers.setdefault(chapter.speaker, []).append(chapter)
    lines = ["; Synthetic speech by espeak-ng\n", ";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for speaker, own in sorted(speakers.items()):
        minutes = sum(seconds[c.chapter] for c in own) / 60
        name = f"espeak-ng {own[0].language}+{own[0].variant}"
        lines.append(f"{speaker:<4} | {voice_sex(own[0].variant)} | {own[0].part:<16} | {minutes:5.2f} | {name}\n")
    (root / "SPEAKERS.TXT").write_text("".join(lines), encoding="utf-8")
    lines = [";ID   |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE\n"]
    for c in sorted(chapters, key=lambda c: c.chapter):
        minutes = seconds[c.chapter] / 60
        lines.append(
            f"{c.chapter:<6} | {c.speaker:<4} | {minutes:5.2f} | {c.part:<16} | 0    | 0     |"
            f" Chapter {c.chapter} | Synthetic speech\n"
        )
    (root / "CHAPTERS.TXT").write_text("".join(lines), encoding="utf-8")


def _already_made(out: Path, parameters: dict) -> bool:
    if not out.exists() or not any(out.iterdir()):
        return False
    record = out / "corpus.json"
    made_with = read_json(record, dict, "remove the folder or name another") if record.is_file() else None
    if made_with == parameters:
        return True
    if made_with is None:
        why = "holds other files"
    else:
        keys = sorted(k for k in {*made_with, *parameters} if made_with.get(k) != parameters.get(k))
        why = "holds a corpus made with other settings: " + "; ".join(
            f"{k} {made_with.get(k)} there, {parameters.get(k)} now" for k in keys
        )
    raise ValueError(f"`corpus-dir` ({out}) must be a new folder, but {why}; remove it or name another folder")


def synthesize_corpus(out: Path, synthesis: SynthesisConfig, parts: Parts, num_jobs: int = 1) -> bool:
    """Make the corpus `out` (`<out>/<part>/<speaker>/<chapter>/...`), or find it already made.

    It grows in `<out>.partial` and gets its name when it is complete; `corpus.json` records what it was made with.

    Args:
      num_jobs: processes. The result does not depend on it.
    Returns:
      Whether it was made (False: it was there, made with the same parameters).
    Raises:
      ValueError: impossible counts, or `out` holds something else.
    """
    parameters = {"format": FORMAT, "parts": {**asdict(parts), "test": list(parts.test)}}
    parameters.update(asdict(synthesis))
    out = Path(out)
    if _already_made(out, parameters):
        return False
    chapters = plan_corpus(synthesis, parts)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    jobs = sorted(((partial, synthesis.seed, c) for c in chapters), key=lambda job: -len(job[2].texts))
    seconds: dict[int, float] = {}
    total = sum(len(c.texts) for c in chapters)
    # One fresh process per chapter: espeak-ng's state then depends on nothing but the chapter. See `espeak.py`.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(method).Pool(num_jobs, maxtasksperchild=1) as pool:
        with tqdm(total=total, desc="Speaking", unit="utt") as bar:
            for chapter, duration, count in pool.imap_unordered(_make_chapter, jobs):
                seconds[chapter] = duration
                bar.update(count)
    _write_tables(partial, chapters, seconds)
    (partial / "corpus.json").write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
    if out.exists():
        out.rmdir()  # empty: checked above
    partial.rename(out)
    return True


def parts_of(cfg: Config) -> Parts:
    """The parts to make.

    Raises:
      ConfigError: the config does not describe synthetic speech.
    """
    corpus = cfg.corpus
    if corpus.synthesis is None:
        raise ConfigError("`corpus.synthesis` must be given to make a synthetic corpus; this one is made elsewhere")
    for key in ("train_parts", "dev_parts"):
        if len(getattr(corpus, key)) != 1:
            raise ConfigError(f"`corpus.{key}` ({getattr(corpus, key)}) must name one part for a synthetic corpus")
    return Parts(corpus.train_parts[0], corpus.dev_parts[0], tuple(corpus.test_parts))


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__.split("\n")[0])
    parser.add_argument("--corpus-dir", type=Path, required=True, help="the new corpus")
    add_num_jobs(parser)

    def work(cfg: Config, args: argparse.Namespace) -> None:
        made = synthesize_corpus(args.corpus_dir, cfg.corpus.synthesis, parts_of(cfg), args.nj)
        print(f"{args.corpus_dir}: {'made' if made else 'already made with these settings; nothing to do'}")

    return run(parser, argv, work)


if __name__ == "__main__":
    sys.exit(main())
