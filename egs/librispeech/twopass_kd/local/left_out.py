"""What of a corpus is not used, and why: `left_out.tsv`, and the account of it on the screen."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from twopass_kd.files.write import printable, write_text_atomically


class LeftOut(NamedTuple):
    """One line of left_out.tsv. What is before the first ": " of a reason is its kind."""

    utterance: str
    part: str
    reason: str


def left_out_path(data_dir: Path) -> Path:
    """Where it lies: it has a heading, then lines of utterance id, part and reason, with tabs in between."""
    return Path(data_dir) / "manifests" / "left_out.tsv"


def write_left_out(data_dir: Path, left_out: Sequence[LeftOut]) -> None:
    """Write left_out.tsv; what would break a line is escaped."""
    rows = [LeftOut("utterance", "part", "reason"), *left_out]
    write_text_atomically(left_out_path(data_dir), "".join("\t".join(map(printable, row)) + "\n" for row in rows))


def read_left_out(data_dir: Path) -> list[LeftOut]:
    """The rows of left_out.tsv without its heading; none where there is no such file."""
    path = left_out_path(data_dir)
    if not path.is_file():
        return []
    return [LeftOut(*line.split("\t", 2)) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def tally(what: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    """Lines that say how many of `rows` (kind, example) are of each kind, most frequent first, with an example."""
    rows = list(rows)
    examples = dict(reversed(rows))  # the first of each kind
    counts = Counter(kind for kind, _ in rows).most_common()
    return [printable(f"  {what} {count}: {kind} (e.g. {examples[kind]})") for kind, count in counts]


def tally_left_out(left_out: Iterable[LeftOut]) -> list[str]:
    """Lines that say how much was left out for reasons of each kind."""
    parted = [(row.utterance, *row.reason.partition(": ")) for row in left_out]
    return tally("left out", [(kind, name + colon + detail) for name, kind, colon, detail in parted])
