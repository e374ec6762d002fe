#!/usr/bin/env python3
"""Stage 0 for corpora of kind `librispeech` and `mini_librispeech`: download and unpack their parts.

Parts that are there are used as they are. Lhotse's functions download the others from OpenSLR (resuming where an
earlier run stopped) and unpack them; each finished part gets the marker `.completed` of Lhotse's LibriSpeech recipe, so
that either finds what the other has done. Lhotse knows no checksums for these archives: those that OpenSLR publishes
(md5sum.txt of resources 12 and 31) are checked before anything is unpacked.
"""

import argparse
import hashlib
import logging
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH
from lhotse.utils import resumable_download, safe_extract
from tqdm import tqdm

from prepare_manifests import corpus_parts
from twopass_kd.config import Config, ConfigError, load_config

BASE_URL = "https://www.openslr.org/resources"
COMPLETE, FOUND, MISSING = "already complete", "found there, used as it is", "to be downloaded"
MD5: Dict[str, str] = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
    "dev-clean-2": "6d7ab67ac6a1d2c993d050e16d61080d",
    "train-clean-5": "5df7d4e78065366204ca6845bb08f490",
}


def state_of(corpus_dir: Path, part: str) -> str:
    """Whether a part is there: COMPLETE (it has Lhotse's marker), FOUND (unpacked by hand: transcripts) or MISSING.

    What we unpack gets its name only when all of it is there, so a folder with transcripts is never half of ours.

    Raises:
      ConfigError: something else bears the part's name; it is not ours to remove.
    """
    folder = corpus_dir / part
    if (folder / ".completed").is_file():
        return COMPLETE
    if next(folder.rglob("*.trans.txt"), None) is not None:
        return FOUND
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None)):
        raise ConfigError(f"`{folder}` must hold transcripts (*.trans.txt) or not exist; complete it or move it away")
    return MISSING


def md5_of(path: Path) -> str:
    """MD5 sum of a file, with a progress bar."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as f,
        tqdm(total=path.stat().st_size, desc=f"Checking {path.name}", unit="B", unit_scale=True, leave=False) as bar,
    ):
        while block := f.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def fetch_archive(url: str, path: Path, md5: str) -> None:
    """Download an archive, or the rest of it, unless it is there and whole. A damaged one is removed.

    Raises:
      ValueError: its MD5 sum is wrong after the download.
      OSError: the server cannot be reached (`urllib.error.URLError` among others).
    """
    if path.is_file() and md5_of(path) == md5:
        return
    try:
        resumable_download(url, filename=path)
    finally:
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()
    found = md5_of(path)
    if found != md5:
        path.unlink()
        raise ValueError(f"`{path}` must have the MD5 sum {md5}, not {found}; it was damaged and is removed: run again")


def unpack_archive(archive: Path, corpus_dir: Path, part: str) -> None:
    """Unpack `LibriSpeech/<part>` of an archive; the part gets its name, and Lhotse's marker, when all is there."""
    partial = corpus_dir / f".partial-{part}"  # within, since LibriSpeech/ may be a link to another disk
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        safe_extract(tar, path=partial)
    unpacked = partial / "LibriSpeech" / part
    if not unpacked.is_dir():
        shutil.rmtree(partial)
        raise ValueError(f"`{archive}` must contain LibriSpeech/{part}")
    (unpacked / ".completed").touch()
    os.replace(unpacked, corpus_dir / part)  # which fails where that is more than an empty folder
    for extra in unpacked.parent.glob("*.TXT"):  # the licence, the list of speakers and others
        os.replace(extra, corpus_dir / extra.name)
    shutil.rmtree(partial)


def parts_to_download(cfg: Config) -> List[str]:
    """The parts of a config, each one that OpenSLR has.

    Raises:
      ConfigError: the corpus is of another kind or a part is unknown.
    """
    if cfg.corpus.kind not in ("librispeech", "mini_librispeech"):
        raise ConfigError(f"`corpus.kind` ({cfg.corpus.kind}) must be librispeech or mini_librispeech to be downloaded")
    known = [*LIBRISPEECH, *MINI_LIBRISPEECH]
    parts = corpus_parts(cfg)
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise ConfigError(f"`corpus` parts ({', '.join(unknown)}) must be among {', '.join(known)}")
    return parts


def download_corpus(cfg: Config, corpus_dir: Path, base_url: str = BASE_URL, md5: Mapping[str, str] = MD5) -> List[str]:
    """Download, check and unpack what is not there yet.

    Args:
      corpus_dir: the folder of the parts. To download into it, it must be named `LibriSpeech`, as the folder inside
        the archives; they are kept beside it.
      base_url: where the resources lie, as `<base_url>/12/dev-clean.tar.gz`.
      md5: part -> MD5 sum of its archive.
    Returns:
      The parts that were downloaded now.
    Raises:
      ConfigError: `parts_to_download`, `state_of`, or a wrongly named folder.
      ValueError: a damaged archive.
      ConnectionError: the server cannot be reached; says what to do instead.
    """
    parts = parts_to_download(cfg)
    corpus_dir = Path(corpus_dir)
    states = {part: state_of(corpus_dir, part) for part in parts}
    for part, state in states.items():
        print(f"{part}: {state}", flush=True)
    wanted = [part for part, state in states.items() if state == MISSING]
    if wanted and corpus_dir.name != "LibriSpeech":
        raise ConfigError(
            f"`--corpus-dir` ({corpus_dir}) must hold {', '.join(wanted)}, or end in /LibriSpeech, the folder inside"
            " the archives, for them to be downloaded into it"
        )
    target = corpus_dir.parent
    for part in wanted:
        target.mkdir(parents=True, exist_ok=True)
        archive = target / f"{part}.tar.gz"
        resource = 12 if part in LIBRISPEECH else 31
        try:
            fetch_archive(f"{base_url}/{resource}/{archive.name}", archive, md5[part])
        except OSError as e:
            raise ConnectionError(
                f"`{part}` could not be downloaded from {base_url} ({e}). What has arrived is kept: run again to go on."
                f" Without network, download {', '.join(f'{p}.tar.gz' for p in wanted)} elsewhere and put them into"
                f" {target}, or pass a folder that already contains the parts as --corpus-dir"
            ) from e
        logging.info("unpacking %s", archive)
        unpack_archive(archive, corpus_dir, part)
    return wanted


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conf", type=Path, required=True, help="experiment YAML; its `corpus` names the parts")
    parser.add_argument("--corpus-dir", type=Path, required=True, help="where the parts go, e.g. download/LibriSpeech")
    parser.add_argument("overrides", nargs="*", help="key=value")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        download_corpus(load_config(args.conf, args.overrides), args.corpus_dir)
    except (ValueError, ConnectionError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
