"""Writing files so that a reader never meets half of one."""

import os
import tempfile
from pathlib import Path


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text beside `path`, then rename: after an interruption the old file is still whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as f:
            f.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def printable(text: str) -> str:
    """Text for one field of one line: what cannot be printed (tabs, line ends, bytes that are no UTF-8) is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def state_of_file(path: Path) -> list[int]:
    """What tells a file from another one of the same name: size and time of change (ns)."""
    found = Path(path).stat()
    return [found.st_size, found.st_mtime_ns]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
