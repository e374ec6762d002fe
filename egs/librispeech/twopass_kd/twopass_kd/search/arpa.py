"""ARPA files of users, made into what kaldilm reads: it aborts at some faults and passes over others."""

import logging
import math
import re
import shutil
import tempfile
from pathlib import Path

from twopass_kd.config.schema import ConfigError
from twopass_kd.files.read import read_lines

BACKOFF = "#0"  # label of the back-off arcs
_RESERVED = {"<eps>", BACKOFF}
_ROUNDING = 1e-3  # so far above 0 a log-prob may be
_ZERO = "-99"  # log10 of a probability of zero, as SRILM writes it


class _Reader:
    """The lines of an ARPA file, one after the other: checks them, gives what to write."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.order = -1  # of the section; 0: the counts, -1: before them
        self.declared: dict[int, int] = {}
        self.counts: list[int] = []
        self.unigrams: set[str] = set()
        self.ended = False
        self.skipped = 0  # n-grams with a word that stands for something else in the graph
        self._seen: set[int] = set()  # hashes of the section's n-grams

    def read(self, line: str) -> str | None:
        """The line to write, None where there is none. Raises ValueError with what it must be."""
        if self.order < 0:
            self.order = 0 if line == "\\data\\" else -1
            return None
        if line == "\\end\\":
            self.ended = True
            return None
        section = re.fullmatch(r"\\(\d+)-grams:", line)
        if section:
            return self._section(int(section[1]))
        return self._ngram(line) if self.order else self._count(line)

    def _count(self, line: str) -> None:
        found = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)
        if not found or int(found[1]) != len(self.declared) + 1:
            raise ValueError(f"must be `ngram {len(self.declared) + 1}=COUNT` or \\1-grams:")
        self.declared[int(found[1])] = int(found[2])

    def _section(self, order: int) -> str:
        if order != self.order + 1 or order not in self.declared:
            raise ValueError("must be of the next order, and the head must have its count")
        head = f"\n\\{order}-grams:"
        if order == 2:
            head = self.missing_start() + head
        self.order = order
        self.counts.append(0)
        self._seen = set()
        return head

    def missing_start(self) -> str:
        """The 1-gram `<s>`, where the section that ends has none; a graph begins there."""
        if self.order != 1 or "<s>" in self.unigrams:
            return ""
        self.counts[0] += 1
        return f"{_ZERO}\t<s>\n"

    def _ngram(self, line: str) -> str | None:
        log_prob, *rest = re.split("[ \t]+", line)  # other spaces may be part of a word
        words, backoff = rest[: self.order], rest[self.order :]
        if len(words) < self.order or len(backoff) > 1:
            raise ValueError(
                f"must be a log10 probability, {self.order} words and at most a back-off weight, between tabs or spaces"
            )
        log_prob, *backoff = (_number(number) for number in (log_prob, *backoff))
        if float(log_prob) > _ROUNDING:
            raise ValueError("must have a log10 probability of at most 0")
        ngram = " ".join(words)
        if hash(ngram) in self._seen:
            raise ValueError("must not be there twice")
        self._seen.add(hash(ngram))
        if not _RESERVED.isdisjoint(words):
            self.skipped += 1
            return None
        if self.order == 1:
            self.unigrams.add(ngram)
        self.counts[-1] += 1
        return "\t".join([log_prob, ngram, *(backoff if self.order < len(self.declared) else [])])


def _number(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or value == math.inf:
        raise ValueError(f"must have numbers around its words, not {text}")
    return _ZERO if value == -math.inf else text


def normalise_arpa(path: Path, out: Path) -> None:
    """Write an ARPA file as kaldilm reads it: UTF-8, true counts, no back-off weights of the longest n-grams.

    Args:
      path: may be gzipped, with any line ends; words may have spaces in them that are neither blanks nor tabs. A model
        that has no `<s>` gets it; n-grams with `<eps>` or `#0` as a word are left out.
      out: the file to write.
    Raises:
      ConfigError: if it is no ARPA file, is cut short or has no `</s>`, naming file and line.
    """
    reader, number, text = _Reader(f"`decode.arpa` ({path})"), 0, ""
    remedy = "give an n-gram model in ARPA format"
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as body:
        for number, text in enumerate(read_lines(path, reader.what, remedy, ConfigError), start=1):
            line = text.strip(" \t\r")
            try:
                written = reader.read(line) if line else None
            except ValueError as e:
                raise ConfigError(f"{reader.what}, line {number} ({text[:80]!r}): {e}; correct it, or {remedy}") from e
            if written is not None:
                body.write(written + "\n")
            if reader.ended:
                break
        _check(reader, number)
        body.write(reader.missing_start())
        body.seek(0)
        with out.open("w", encoding="utf-8", newline="\n") as f:
            f.write("\\data\\\n" + "".join(f"ngram {n}={c}\n" for n, c in enumerate(reader.counts, start=1)))
            shutil.copyfileobj(body, f)
            f.write("\n\\end\\\n")


def _check(reader: _Reader, number: int) -> None:
    """The whole file, of `number` lines so far."""
    if reader.order < 0:
        raise ConfigError(f"{reader.what} must be an n-gram model in ARPA format, with a line \\data\\; it has none")
    if not reader.ended:
        raise ConfigError(f"{reader.what} is cut short: it ends in line {number} without \\end\\; copy it again")
    if not reader.counts or len(reader.counts) < len(reader.declared):
        raise ConfigError(
            f"{reader.what}, line {number}: must have a section \\{len(reader.counts) + 1}-grams: before this, as its "
            "head says; copy it again"
        )
    if "</s>" not in reader.unigrams:
        raise ConfigError(
            f"{reader.what} must have `</s>` among its 1-grams, or no sentence ends; train it with sentence ends"
        )
    for count, (order, declared) in zip(reader.counts, reader.declared.items()):
        if count + reader.skipped < declared:
            logging.warning("%s: %d-grams: the head says %d, it has %d", reader.what, order, declared, count)
    if reader.skipped:
        logging.warning("%s: %d n-grams with %s left out", reader.what, reader.skipped, " or ".join(sorted(_RESERVED)))
