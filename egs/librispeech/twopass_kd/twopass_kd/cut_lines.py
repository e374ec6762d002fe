"""Cuts as lines of their manifest, of which a sampler reads no more than it needs.

A sampler that shuffles holds 20,000 cuts, and one that goes on in the middle of an epoch runs through all cuts before.
It looks at nothing but their ids and durations, so the rest of a line is parsed when its batch is loaded, by the worker
that loads it. benchmarks/sampler_startup.py shows what that saves.
"""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Iterator

from lhotse import MonoCut
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

# How Lhotse begins the line of a cut; another line is parsed as a whole.
_BEGINNING = re.compile(rb'\{"id": "([^"\\]+)", "start": [-+.\de]+, "duration": ([-+.\de]+), ')


def paths_root(data_dir: Path) -> Path:
    """The folder that relative paths in the manifests of `data_dir` count from, which is the one it lies in.

    icefall's begin with `data/`. Where `data_dir` is a link, the folder around the link or around what it leads to may
    be meant: it is the one with `data/fbank` in it.
    """
    around = [Path(os.path.abspath(data_dir)).parent, Path(data_dir).resolve().parent]
    return next((folder for folder in around if (folder / "data" / "fbank").is_dir()), around[-1])


def open_lines(path: Path) -> Iterator[bytes]:
    """The lines of a gzipped manifest."""
    with gzip.open(path, "rb") as f:
        yield from f


def parse_line(line: bytes) -> Cut:
    """The cut that a line of a manifest tells of."""
    return deserialize_item(json.loads(line))


class CutLines:
    """A manifest (.jsonl.gz) as cuts with the right `id` and `duration`, which carry their line in `custom`.

    `whole_cut` turns them into what the line says. Samplers and `CutSet` take it as any lazy manifest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[MonoCut]:
        for line in open_lines(self.path):
            found = _BEGINNING.match(line)
            if found:
                cut_id, duration = found[1].decode(), float(found[2])
            else:
                cut = parse_line(line)
                cut_id, duration = cut.id, cut.duration
            yield MonoCut(cut_id, start=0.0, duration=duration, channel=0, custom={"line": line})


def whole_cut(cut: Cut, root: Path) -> Cut:
    """What the line of a cut out of `CutLines` says, under the cut's id (a sampler renames cuts that it doubles).

    Args:
      cut: any other cut is given back as it is.
      root: folder that relative paths of features count from.
    """
    line = (getattr(cut, "custom", None) or {}).get("line")
    if line is None:
        return cut
    whole = parse_line(line)
    whole.id = cut.id
    return whole.with_features_path_prefix(root)
