#!/usr/bin/env python3
"""Stage 0 for corpora of kind `librispeech` and `mini_librispeech`: download and unpack their parts; for `corpus.musan`
MUSAN too, whatever the corpus.

What is there is used as it is. Lhotse downloads the rest from OpenSLR (resuming where an earlier run stopped); each
finished folder gets the marker `.completed` of Lhotse's LibriSpeech recipe, so that either finds what the other has
done. Lhotse knows no checksums for these archives: their MD5 sums are checked before anything is unpacked.
"""

import fnmatch
import hashlib
import logging
import os
import shutil
import socket
import sys
import tarfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH
from lhotse.utils import resumable_download, safe_extract
from tqdm import tqdm

from command import make_parser, run
from find_utterances import find_part, walk
from prepare_manifests import corpus_parts, musan_dir
from twopass_kd.config.schema import Config, ConfigError

BASE_URL = "https://www.openslr.org/resources"
SECONDS_OF_SILENCE = 60  # of a server, after which the download ends with an error
COMPLETE, FOUND, MISSING = "already complete", "found there, used as it is", "to be downloaded"
# name -> (MD5 sum of the archive, utterances in it)
ARCHIVES: dict[str, tuple[str, int | None]] = {
    "dev-clean": ("42e2234ba48799c1f50f24a7926300a1", 2703),
    "dev-other": ("c8d0bcc9cca99d4f8b62fcc847357931", 2864),
    "test-clean": ("32fa31d27d2e1cad72775fee3f4849a9", 2620),
    "test-other": ("fb5a50374b501bb3bac4815ee91d3135", 2939),
    "train-clean-100": ("2a93770f6d5c6c964bc36631d331a522", 28539),
    "train-clean-360": ("c0e676e450a7ff2f54aeade5171606fa", 104014),
    "train-other-500": ("d1a0fd59409feb2c614ce4d30c387708", 148688),
    "dev-clean-2": ("6d7ab67ac6a1d2c993d050e16d61080d", 1089),
    "train-clean-5": ("5df7d4e78065366204ca6845bb08f490", 1519),
    "musan": ("0c472d4fc0c5141eca47ad1ffeb2a7df", None),
}


@dataclass(frozen=True)
class Archive:
    """An archive of OpenSLR and the folder that it becomes.

    Attributes:
      name: of the archive without `.tar.gz`; it is kept beside the corpus's folder.
      resource: number of OpenSLR's page.
      inside: path of the folder in the archive.
      folder: path that it gets.
      content: what is in it and says that somebody has unpacked it.
      pattern: of the names of such files, in lower case.
    """

    name: str
    resource: int
    inside: str
    folder: Path
    content: str
    pattern: str


def state_of(archive: Archive) -> str:
    """Whether a folder is there: COMPLETE (it has Lhotse's marker), FOUND (unpacked by hand: has content) or MISSING.

    What we unpack gets its name only when all of it is there, so a folder with content is never half of ours.

    Raises:
      ConfigError: something else bears its name; it is not ours to remove. Or it cannot be read.
    """
    folder = archive.folder
    if (folder / ".completed").is_file():
        return COMPLETE
    if folder.is_dir() and any(
        fnmatch.fnmatchcase(name.lower(), archive.pattern) for _, _, files in walk(folder, []) for name in files
    ):
        return FOUND
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None)):
        raise ConfigError(
            f"`{folder}` must hold {archive.content} ({archive.pattern}) or not exist; complete it or move it away"
        )
    return MISSING


def how_much_of_it(archive: Archive) -> str:
    """How many utterances of its archive a folder has that somebody else has unpacked; "" where they are all there."""
    wanted = ARCHIVES[archive.name][1]
    found = len(find_part(archive.folder).lines) if wanted is not None else None
    return "" if found == wanted else f" ({found} of the archive's {wanted} utterances)"


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
      OSError: the server cannot be reached (`urllib.error.URLError` among others), or sends no more.
    """
    if path.is_file() and md5_of(path) == md5:
        return
    try:
        download(url, path)
    finally:
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()
    found = md5_of(path)
    if found != md5:
        path.unlink()
        raise ValueError(f"`{path}` must have the MD5 sum {md5}, not {found}; it was damaged and is removed: run again")


def download(url: str, path: Path) -> None:
    """Download a file, or the rest of it.

    Lhotse takes a connection that ends early for the end of the file, so that we ask the server how long it is.
    """
    socket.setdefaulttimeout(SECONDS_OF_SILENCE)
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as response:
        size = int(response.headers.get("Content-Length", 0))
    there = -1
    while there < size:
        before = there
        resumable_download(url, filename=path)
        there = path.stat().st_size
        if there == before:
            raise ConnectionError(f"{url} ended after {there} of {size} bytes")


def no_network(name: str, url: str, error: OSError, files: str, target: Path) -> ConnectionError:
    """What is told where a download fails: `files` are what it takes, `target` the folder that they go into."""
    return ConnectionError(
        f"`{name}` could not be downloaded from {url} ({error}). What has arrived is kept: run again to go on. Without"
        f" network, download {files} elsewhere, to {target}, or pass a folder that already contains the"
        " parts as --corpus-dir"
    )


def unpack_archive(path: Path, archive: Archive) -> None:
    """Unpack the folder of an archive; it gets its name, and Lhotse's marker, when all is there."""
    folder = archive.folder
    partial = folder.with_name(f".partial-{folder.name}")  # beside it, since LibriSpeech/ may be a link to another disk
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with tarfile.open(path) as tar:
        safe_extract(tar, path=partial)
    unpacked = partial / archive.inside
    if not unpacked.is_dir():
        shutil.rmtree(partial)
        raise ValueError(f"`{path}` must contain {archive.inside}")
    (unpacked / ".completed").touch()
    os.replace(unpacked, folder)  # which fails where that is more than an empty folder
    for extra in unpacked.parent.glob("*.TXT"):  # the licence, the list of speakers and others
        os.replace(extra, folder.parent / extra.name)
    shutil.rmtree(partial)


def archives_of(cfg: Config, corpus_dir: Path) -> list[Archive]:
    """The archives that a config needs.

    Raises:
      ConfigError: nothing of it is to be downloaded, or a part is unknown.
    """
    archives = []
    if cfg.corpus.kind in ("librispeech", "mini_librispeech"):
        known = [*LIBRISPEECH, *MINI_LIBRISPEECH]
        parts = corpus_parts(cfg)
        unknown = [part for part in parts if part not in known]
        if unknown:
            raise ConfigError(f"`corpus` parts ({', '.join(unknown)}) must be among {', '.join(known)}")
        for part in parts:
            resource = 12 if part in LIBRISPEECH else 31
            where = (f"LibriSpeech/{part}", corpus_dir / part)
            archives.append(Archive(part, resource, *where, content="transcripts", pattern="*.trans.txt"))
    elif not cfg.corpus.musan:
        raise ConfigError(
            f"`corpus.kind` ({cfg.corpus.kind}) must be librispeech or mini_librispeech, or `corpus.musan` true, for"
            " anything to be downloaded"
        )
    if cfg.corpus.musan:
        archives.append(Archive("musan", 17, "musan", musan_dir(corpus_dir), content="recordings", pattern="*.wav"))
    return archives


def download_corpus(
    cfg: Config, corpus_dir: Path, base_url: str = BASE_URL, md5: Mapping[str, str] | None = None
) -> list[str]:
    """Download, check and unpack what is not there yet.

    Args:
      corpus_dir: the folder of the parts. To download into it, it must be named `LibriSpeech`, as the folder inside
        the archives; they are kept beside it, and MUSAN goes there.
      base_url: where the resources lie, as `<base_url>/12/dev-clean.tar.gz`.
      md5: name -> MD5 sum of its archive; None: OpenSLR's.
    Returns:
      The names of the archives that were downloaded now.
    Raises:
      ConfigError: `archives_of`, `state_of`, or a folder that is none or wrongly named.
      ValueError: a damaged archive.
      ConnectionError: the server cannot be reached; says what to do instead.
    """
    md5 = md5 or {name: md5 for name, (md5, _) in ARCHIVES.items()}
    corpus_dir = Path(os.path.abspath(corpus_dir))
    if os.path.lexists(corpus_dir) and not corpus_dir.is_dir():
        raise ConfigError(f"`--corpus-dir` ({corpus_dir}) must be a folder, not a file or a broken link; move it away")
    states = {archive: state_of(archive) for archive in archives_of(cfg, corpus_dir)}
    for archive, state in states.items():
        print(f"{archive.name}: {state}{how_much_of_it(archive) if state == FOUND else ''}", flush=True)
    wanted = [archive for archive, state in states.items() if state == MISSING]
    parts = [archive.name for archive in wanted if archive.folder.parent == corpus_dir]
    if parts and corpus_dir.name != "LibriSpeech":
        raise ConfigError(
            f"`--corpus-dir` ({corpus_dir}) must hold {', '.join(parts)}, or end in /LibriSpeech, the folder inside"
            " the archives, for them to be downloaded into it"
        )
    target = corpus_dir.parent
    for archive in wanted:
        target.mkdir(parents=True, exist_ok=True)
        path = target / f"{archive.name}.tar.gz"
        try:
            fetch_archive(f"{base_url}/{archive.resource}/{path.name}", path, md5[archive.name])
        except OSError as e:
            files = ", ".join(f"{a.name}.tar.gz" for a in wanted)
            raise no_network(archive.name, base_url, e, files, target) from e
        logging.info("unpacking %s", path)
        unpack_archive(path, archive)
    return [archive.name for archive in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__.split("\n")[0])
    parser.add_argument("--corpus-dir", type=Path, required=True, help="where the parts go, e.g. download/LibriSpeech")
    return run(parser, argv, lambda cfg, args: download_corpus(cfg, args.corpus_dir))


if __name__ == "__main__":
    sys.exit(main())
