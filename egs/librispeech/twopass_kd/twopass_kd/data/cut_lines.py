"""Cuts as lines of their manifest, of which a sampler reads no more than it needs.

A sampler that shuffles holds 20,000 cuts, and one that goes on in the middle of an epoch runs through all cuts before.
It looks at nothing but their ids and durations, so the rest of a line is parsed when its batch is loaded, by the worker
that loads it. benchmarks/sampler_startup.py shows what that saves.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lhotse import Features, MonoCut
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.serialization import deserialize_item

from twopass_kd.data.manifest_fields import MonoCutFields, find_problem

# How Lhotse begins the line of a cut; another line is parsed as a whole.
_BEGINNING = re.compile(rb'\{"id": "([^"\\]+)", "start": [-+.\de]+, "duration": ([-+.\de]+), ')
# Where features and audio lie: the folders may be others on another disk.
_FOLDERS = re.compile(rb'("(?:storage_path|source)": ")[^"]*/')


@cache
def paths_root(data_dir: Path) -> Path:
    """The folder that relative paths in the manifests of `data_dir` count from, which is the one it lies in.

    icefall's begin with `data/`. Where `data_dir` is a link, the folder around the link or around what it leads to may
    be meant: it is the one with `data/fbank` in it.
    """
    around = [Path(os.path.abspath(data_dir)).parent, Path(data_dir).resolve().parent]
    return next((folder for folder in around if (folder / "data" / "fbank").is_dir()), around[-1])


def features_path(data_dir: Path, stored: str) -> Path:
    """Where features are that a manifest of `data_dir` says are in `stored`.

    What follows `fbank/` there is looked for in `<data_dir>/fbank` first, so that data which were moved, copied or
    mounted elsewhere are read where they are; else a relative path counts from `paths_root`.
    """
    _, fbank, rest = f"/{stored}".rpartition("/fbank/")
    here = Path(data_dir) / "fbank" / rest
    return here if fbank and here.exists() else paths_root(data_dir) / stored


def manifest_lines(path: Path) -> Iterator[bytes]:
    """The lines of a gzipped manifest.

    Raises:
      ValueError: the file is not gzipped, or cut short; names it.
    """
    try:
        with gzip.open(path, "rb") as f:
            yield from filter(bytes.strip, f)
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise ValueError(f"{path} must be a whole gzipped manifest ({type(e).__name__}: {e}); make it anew") from e


def parse_line(line: bytes) -> Cut:
    """The cut that a line of a manifest tells of.

    Raises:
      ValueError: it tells of none.
    """
    try:
        content = json.loads(line)
        is_mono = isinstance(content, dict) and content.get("type") in ("MonoCut", "Cut")
        problem = find_problem(content, MonoCutFields) if is_mono else None
        cut = deserialize_item(content) if problem is None else None
    except Exception as e:  # each kind of manifest has errors of its own
        raise ValueError(f"{line[:80]!r} must be a cut ({type(e).__name__}: {e}); make the manifest anew") from e
    if problem is not None:
        raise ValueError(f"{line[:80]!r} must be a cut, but {problem}; make the manifest anew")
    if not isinstance(cut, Cut):
        raise ValueError(f"{line[:80]!r} must be a cut, not a {type(cut).__name__}; make the manifest anew")
    return cut


def read_cuts(path: Path) -> Iterator[tuple[bytes, Cut]]:
    """The lines of a manifest and their cuts.

    Raises:
      ValueError: naming the file, and the line that is no cut.
    """
    for number, line in enumerate(manifest_lines(path), start=1):
        try:
            yield line, parse_line(line)
        except ValueError as e:
            raise ValueError(f"{path}, line {number}: {e}") from e


def without_folders(lines: bytes) -> bytes:
    """Lines of a manifest without the folders of features and audio: what identifies data wherever they lie."""
    return _FOLDERS.sub(rb"\1", lines)


@dataclass
class LineCut(MonoCut):
    """A cut of which only `id` and `duration` are known, and the line that has the rest."""

    line: bytes = b""


class CutLines:
    """A manifest (.jsonl.gz) as cuts with the right `id` and `duration`, which `whole_cut` makes what their lines say.

    Samplers and `CutSet` take it as any lazy manifest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[LineCut]:
        for line in manifest_lines(self.path):
            found = _BEGINNING.match(line)
            if found:
                cut_id, duration = found[1].decode(), float(found[2])
            else:
                cut = parse_line(line)
                cut_id, duration = cut.id, cut.duration
            yield LineCut(cut_id, start=0.0, duration=duration, channel=0, line=line)


def whole_cut(line: bytes, data_dir: Path) -> Cut:
    """The cut of a line that was looked at before; with the id there (a sampler renames cuts that it doubles).

    Args:
      data_dir: whose manifest the line is from; see `place_files`.
    """
    return place_files(deserialize_item(json.loads(line)), data_dir)


def is_in_files(features: Features) -> bool:
    """Whether features lie in files or folders, not in the manifest or behind a URL."""
    return not (features.storage_type.startswith("memory") or "://" in features.storage_path)


def place_files(cut: Cut, data_dir: Path) -> Cut:
    """The cut of a manifest of `data_dir`, changed so that its features and audio are read where they are."""
    if not isinstance(cut, DataCut):
        return cut
    if cut.has_features and is_in_files(cut.features):
        cut.features.storage_path = str(features_path(data_dir, cut.features.storage_path))
    for source in cut.recording.sources if cut.has_recording else ():
        if source.type == "file":
            source.source = str(paths_root(data_dir) / source.source)
    return cut
