"""Stage 0 for corpora of kind `an4`: CMU's AN4 (census) database, in LibriSpeech's layout.

People spell names and addresses and say numbers, dates and control words, 16 kHz. No speaker is in two parts: `test` is
CMU's own, `dev` has every ninth of CMU's training speakers, `train` the others.

    download/an4/LibriSpeech/train/1001/1/1001-1-0000.flac    wav/an4_clstk/fash/an251-fash-b.sph of CMU's archive

Speakers have numbers in the order of CMU's lists, from 1001; chapter 1 has a speaker's control words and numbers
(`an...`), chapter 2 what is spelled and said about the person (`cen...`).
"""

import gzip
import logging
import os
import re
import shutil
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import soundfile
from lhotse.utils import safe_extract
from tqdm import tqdm

from download_corpus import download, no_network
from twopass_kd.config.schema import ConfigError
from twopass_kd.files.write import write_text_atomically

URL = "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"
ARCHIVE = "an4_sphere.tar.gz"
# CMU's set -> (its list of transcripts, its folder of recordings, utterances in it)
CMU_SETS = {
    "train": ("etc/an4_train.transcription", "wav/an4_clstk", 948),
    "test": ("etc/an4_test.transcription", "wav/an4test_clstk", 130),
}
PARTS = ("train", "dev", "test")
FIRST_SPEAKER = 1001
_LINE = re.compile(r"(?:<s>)?(?P<text>[^()]*?)(?:</s>)?\s*\((?P<id>(?P<kind>an|cen)\d+-(?P<speaker>\w+)-b)\)")


@dataclass(frozen=True)
class Utterance:
    """One of CMU's, and where it goes.

    Attributes:
      audio: path of its SPHERE file in CMU's folder.
      text: upper case, words only.
      part, speaker, chapter, number: train | dev | test; from 1001; 1 | 2; within the chapter, from 0.
    """

    audio: str
    text: str
    part: str
    speaker: int
    chapter: int
    number: int

    @property
    def folder(self) -> str:
        return f"{self.speaker}/{self.chapter}"

    @property
    def name(self) -> str:
        return f"{self.speaker}-{self.chapter}-{self.number:04d}"


def prepare_an4(corpus_dir: Path, url: str = URL) -> None:
    """See to it that the parts are in `corpus_dir`: as they are there, or made of CMU's folder or archive.

    CMU's folder (with etc/ and wav/) is `corpus_dir`, or `an4` in it or beside it; where there is none, the archive is
    downloaded and unpacked beside `corpus_dir`.

    Raises:
      ConfigError: only some of the parts are there, or CMU's folder is not whole; names what is missing.
      ConnectionError: the archive cannot be downloaded; says what to do instead.
    """
    corpus_dir = Path(os.path.abspath(corpus_dir))
    there = [part for part in PARTS if (corpus_dir / part).is_dir()]
    if len(there) == len(PARTS):
        print(f"{', '.join(PARTS)}: found in {corpus_dir}, used as they are")
        return
    places = (corpus_dir, corpus_dir / "an4", corpus_dir.parent / "an4")
    cmu = next((place for place in places if (place / CMU_SETS["train"][0]).is_file()), None)
    if cmu is None:
        if there:
            missing = ", ".join(part for part in PARTS if part not in there)
            raise ConfigError(f"`--corpus-dir` ({corpus_dir}) has {', '.join(there)}, but not {missing}; complete it")
        cmu = _fetch(corpus_dir.parent, url)
    utterances = list(read_cmu_lists(cmu))
    for part in PARTS:
        if part not in there:
            _write_part(cmu, [u for u in utterances if u.part == part], corpus_dir / part)


def read_cmu_lists(cmu: Path) -> Iterator[Utterance]:
    """All utterances of CMU's folder, each with its place in LibriSpeech's layout.

    Raises:
      ConfigError: a list or a recording is missing, or a list has other lines than CMU's.
    """
    speakers: dict[str, int] = {}
    for cmu_set, (list_name, wav, count) in CMU_SETS.items():
        path = cmu / list_name
        if not path.is_file():
            raise ConfigError(f"{path} must exist; unpack {ARCHIVE} again")
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(lines) != count:
            raise ConfigError(f"{path} must have {count} lines, not {len(lines)}; unpack {ARCHIVE} again")
        numbers: dict[tuple[int, int], int] = defaultdict(int)
        for i, line in enumerate(lines, start=1):
            match = _LINE.fullmatch(line.strip())
            if match is None or not match["text"].strip():
                raise ConfigError(f"{path}, line {i}: must be `WORDS (an1-speaker-b)`, but is {line[:80]!r}")
            speaker = speakers.setdefault(match["speaker"], FIRST_SPEAKER + len(speakers))
            is_dev = cmu_set == "train" and (speaker - FIRST_SPEAKER) % 9 == 4
            chapter = 1 if match["kind"] == "an" else 2
            audio = f"{wav}/{match['speaker']}/{match['id']}.sph"
            if not (cmu / audio).is_file():
                raise ConfigError(f"{cmu / audio} must exist, since {path}, line {i} names it; unpack {ARCHIVE} again")
            text = " ".join(match["text"].upper().split())
            yield Utterance(audio, text, "dev" if is_dev else cmu_set, speaker, chapter, numbers[speaker, chapter])
            numbers[speaker, chapter] += 1


def _fetch(folder: Path, url: str) -> Path:
    """CMU's archive, downloaded, checked and unpacked into `folder`; its path there."""
    unpacked = folder / "an4"
    if unpacked.exists():
        raise ConfigError(
            f"{unpacked} must be CMU's folder (with etc/ and wav/) or not exist; complete it or move it away"
        )
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / ARCHIVE
    if not (archive.is_file() and _is_whole(archive)):
        try:
            download(url, archive)
        except OSError as e:
            raise no_network("AN4", url, e, ARCHIVE, folder) from e
        if not _is_whole(archive):
            archive.unlink()
            raise ValueError(f"`{archive}` was damaged and is removed: run again")
    logging.info("unpacking %s", archive)
    partial = folder / ".partial-an4"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        safe_extract(tar, path=partial)
    os.replace(partial / "an4", unpacked)
    shutil.rmtree(partial)
    return unpacked


def _is_whole(archive: Path) -> bool:
    """Whether gzip's checksum at the end of the archive is right: CMU gives no other."""
    try:
        with gzip.open(archive) as f:
            while f.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True


def _write_part(cmu: Path, utterances: list[Utterance], folder: Path) -> None:
    """A part in LibriSpeech's layout; it gets its name when all of it is there."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    lines = defaultdict(list)
    for utterance in tqdm(utterances, desc=f"{folder.name}: SPHERE to FLAC", unit="utt"):
        path = cmu / utterance.audio
        try:
            samples, rate = soundfile.read(path, dtype="int16")
        except soundfile.LibsndfileError as e:
            raise ConfigError(f"{path} must be a SPHERE file ({e}); unpack {ARCHIVE} again") from e
        chapter = partial / utterance.folder
        chapter.mkdir(parents=True, exist_ok=True)
        soundfile.write(chapter / f"{utterance.name}.flac", samples, rate, subtype="PCM_16")
        lines[chapter / f"{utterance.speaker}-{utterance.chapter}.trans.txt"].append(
            f"{utterance.name} {utterance.text}\n"
        )
    for path, texts in lines.items():
        write_text_atomically(path, "".join(texts))
    os.replace(partial, folder)
