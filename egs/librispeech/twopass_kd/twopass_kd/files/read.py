"""Files that users hand over: text whatever its line ends and compression, JSON of a known shape; else an error.

Every error names the file and, where there is one, the line, and says what to do.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def read_json(path: Path, schema: Any, remedy: str, error: type[ValueError] = ValueError) -> Any:
    """The content of a JSON file.

    Args:
      schema: what it must look like, see `find_problem`.
      remedy: ends the message of an error, e.g. "run stage 8 again".
      error: the type to raise.
    Raises:
      error: if the file is missing or no JSON, or a field is missing or of another type, naming it.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as e:
        raise error(f"{path} cannot be read ({e.strerror or e}); {remedy}") from e
    except (ValueError, RecursionError) as e:  # not JSON, or not UTF-8
        raise error(f"{path} must be JSON, but is not ({e}); {remedy}") from e
    problem = find_problem(content, schema)
    if problem is not None:
        whole = problem.removeprefix("`content`")
        raise error(f"{path}{whole if whole != problem else f': {problem}'}; {remedy}")
    return content


def find_problem(value: Any, schema: Any, where: str = "") -> str | None:
    """The first place where `value` is not as `schema` has it, or None.

    Args:
      schema: a type, None, [items], [this, that], a dict of named fields (a value may have more; one that ends in `?`
        may be missing), {...: value} under any names, or a tuple of alternatives. `float` takes whole numbers too.
    """
    if isinstance(schema, tuple):
        found = [find_problem(value, s, where) for s in schema]
        inside = [p for p in found if p is not None and not p.startswith(f"`{where}` (")]
        return None if None in found else [*inside, *found][0]
    if schema is None or isinstance(schema, type):
        kinds = {None: (type(None),), float: (int, float)}.get(schema, (schema,))
        fits = isinstance(value, kinds) and (schema is bool or not isinstance(value, bool))
        return None if fits else f"`{where}` ({value!r:.60}) must be a {getattr(schema, '__name__', 'null')}"
    kind = list if isinstance(schema, list) else dict
    if not isinstance(value, kind):
        return f"`{where or 'content'}` ({value!r:.60}) must be a {kind.__name__}"
    if kind is list:
        if len(schema) > 1 and len(value) != len(schema):
            return f"`{where}` ({value!r:.60}) must have {len(schema)} items"
        parts = [(f"{where}[{i}]", item, schema[min(i, len(schema) - 1)]) for i, item in enumerate(value)]
    else:
        if ... in schema:
            schema = dict.fromkeys(value, schema[...])
        else:
            schema = {key: s for key, s in schema.items() if not key.endswith("?") or key[:-1] in value}
            schema = {key.removesuffix("?"): s for key, s in schema.items()}
        missing = [key for key in schema if key not in value]
        if missing:
            return f"`{where or 'content'}` must have {', '.join(missing)}"
        parts = [(f"{where}.{key}".lstrip("."), value[key], s) for key, s in schema.items()]
    problems = (find_problem(item, s, name) for name, item, s in parts)
    return next((p for p in problems if p is not None), None)


def compile_test(schema: Any) -> Callable[[Any], bool]:
    """A fast test, for many values, of what `find_problem` finds nothing in; of its schemas those without [this, that]
    and {...: value}."""
    if isinstance(schema, tuple):
        tests = [compile_test(s) for s in schema]
        return lambda value: any(test(value) for test in tests)
    if schema is None or isinstance(schema, type):
        kinds = {None: (type(None),), float: (int, float)}.get(schema, (schema,))
        return lambda value: type(value) in kinds
    if isinstance(schema, list):
        (test,) = map(compile_test, schema)
        return lambda value: type(value) is list and all(map(test, value))
    fields = [(key.removesuffix("?"), key.endswith("?"), compile_test(s)) for key, s in schema.items()]

    def fits(value: Any) -> bool:
        return type(value) is dict and all(test(value[k]) if k in value else missing for k, missing, test in fields)

    return fits
