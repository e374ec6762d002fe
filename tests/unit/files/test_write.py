import os
from pathlib import Path

import pytest

from twopass_kd.files.write import write_text_atomically


def test_write_text_atomically_replaces_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "new folder" / "x.txt"
    write_text_atomically(path, "old")
    write_text_atomically(path, "new ü\n")
    assert path.read_bytes() == "new ü\n".encode()
    assert os.listdir(path.parent) == ["x.txt"]


def test_write_text_atomically_failure_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "x.txt"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "half \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_write_text_atomically_follows_the_umask(tmp_path: Path):
    previous = os.umask(0o027)
    try:
        write_text_atomically(tmp_path / "x.txt", "")
    finally:
        os.umask(previous)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640
