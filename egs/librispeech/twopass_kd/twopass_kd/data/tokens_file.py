"""tokens.txt: a piece, a space and its id on each line, as icefall and sherpa-onnx have it."""

from collections.abc import Sequence
from pathlib import Path

from twopass_kd.files.read import read_lines


def read_pieces(path: Path, what: str, remedy: str, error: type[ValueError] = ValueError) -> list[str]:
    """The pieces by id.

    Args:
      what, remedy, error: see `read_lines`.
    Raises:
      error: as `read_lines`; if the ids are not 0, 1, 2, ...
    """
    pieces: list[str] = []
    for number, line in enumerate(read_lines(path, what, remedy, error), start=1):
        piece, _, index = line.rpartition(" ")
        if index != str(len(pieces)) or not piece:
            raise error(f"{what}, line {number} ({line!r}) must be a token and its id {len(pieces)}; {remedy}")
        pieces.append(piece)
    return pieces


def without_disambiguation(pieces: Sequence[str]) -> list[str]:
    """Without icefall's #0, #1, ... at the end, which are of its lexicon; elsewhere `#1` is a piece like others."""
    last = pieces[-1][1:] if pieces and pieces[-1].startswith("#") else ""
    count = int(last) + 1 if last.isdecimal() else 0
    added = [f"#{i}" for i in range(min(count, len(pieces)))]
    return list(pieces[: len(pieces) - count] if count and list(pieces[-count:]) == added else pieces)
