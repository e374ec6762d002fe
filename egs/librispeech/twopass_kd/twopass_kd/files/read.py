"""Text files that users hand over, whatever their line ends and compression; else an error.

Every error names the file and, where there is one, the line, and says what to do.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_ARCHIVES = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def no_content(path: Path) -> str | None:
    """What stands in a file's place, and what to do: nothing, a Git LFS pointer, the page of a failed download.

    Returns:
      e.g. "is empty; copy it again"; None where the file may be what it should be, or cannot be read at all.
    """
    try:
        with open(path, "rb") as f:
            return _no_content(f.read(512))
    except OSError:
        return None


def _no_content(start: bytes) -> str | None:
    if not start:
        return "is empty (0 bytes); copy or make it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; fetch that: `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, as a failed download leaves; download the file itself"
    return None


def _no_text(start: bytes) -> str | None:
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            return f"must be text, but is packed by {name}; unpack it"
    if start.startswith(b"mmap lm http://kheafield"):
        return "must be text, but is a binary of KenLM's; give the ARPA file that it was built from"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "must be UTF-8 text, but is UTF-16; convert it: `iconv -f utf-16 -t utf-8`"
    return "must be text, but is a binary file; check that it is the right one" if b"\0" in start else None


def read_lines(path: Path, what: str, remedy: str, error: type[ValueError] = ValueError) -> Iterator[str]:
    """The lines of a UTF-8 text, one after the other: with any line ends, plain or gzipped, without a byte order mark.

    A line ends at a line feed only, not at the other separators of Unicode, which may be part of a word.

    Args:
      what: begins the message of an error, e.g. "`decode.arpa` (my.arpa)".
      remedy: ends it where nothing better is known, e.g. "run stage 2 again".
      error: the type to raise.
    Raises:
      error: if the file is missing, cut short or of another kind, or a line is not UTF-8.
    """
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            f = gzip.GzipFile(fileobj=raw) if packed else raw
            start = f.read(512)
            problem = _no_content(start) or _no_text(start)
            if problem:
                raise error(f"{what} {problem}")
            f.seek(0)
            for number, line in enumerate(f, start=1):
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if number == 1:
                    line = line.removeprefix(_BOM)
                try:
                    yield line.decode("utf-8")
                except UnicodeDecodeError as e:
                    raise error(
                        f"{what}, line {number}: must be UTF-8 text, but has the byte 0x{line[e.start]:02x} "
                        f"({line[:60].decode('latin-1')!r} in Latin-1); convert it, e.g. `iconv -f latin1 -t utf-8`"
                    ) from e
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise error(f"{what} is cut short or damaged ({e}); {remedy}") from e
    except OSError as e:
        raise error(f"{what} cannot be read ({e.strerror or e}); {remedy}") from e
