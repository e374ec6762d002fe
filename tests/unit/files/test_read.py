"""Tests of twopass_kd/files/read.py and data/tokens_file.py."""

import gzip
import os

import pytest

from twopass_kd.config.schema import ConfigError
from twopass_kd.data.tokens_file import read_pieces, without_disambiguation
from twopass_kd.files.read import no_content, read_lines

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
SEPARATORS = "\u2028\u2029\u0085\u00a0\u3000\x0b\x0c\x1c\x1d\x1e"


def lines_of(path):
    return list(read_lines(path, f"`key` ({path})", "do this", ConfigError))


@pytest.mark.parametrize(
    "packed, end, mark", [(False, "\n", ""), (False, "\r\n", "\ufeff"), (True, "\n", "\ufeff"), (True, "\r\n", "")]
)
def test_read_lines_of_any_kind(tmp_path, packed, end, mark):
    texts = ["A", "", f"B{SEPARATORS}C", "É"]
    content = (mark + end.join(texts)).encode()
    (tmp_path / "x").write_bytes(gzip.compress(content) if packed else content)
    assert lines_of(tmp_path / "x") == texts


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", r"is empty \(0 bytes\); copy or make it again"),
        (LFS, "is a Git LFS pointer, not the file itself; fetch that: `git lfs pull`"),
        (b"\n<!doctype HTML>\n<html>", "is a web page, as a failed download leaves; download the file itself"),
        (b"PK\x03\x04rest", "is packed by zip; unpack it"),
        (b"\x80\x02}q\0", "is a binary file; check that it is the right one"),
        ("A\nB\n".encode("utf-16"), "is UTF-16; convert it"),
        (b"A\nCAF\xc9\n", r", line 2: must be UTF-8 text, but has the byte 0xc9 \('CAFÉ' in Latin-1\); convert it"),
        (gzip.compress(b"A" * 9999, mtime=0)[:20], "is cut short or damaged .*; do this"),
        (gzip.compress(b"", mtime=0)[:2] + b"no gzip", "is cut short or damaged .*; do this"),
    ],
)
def test_read_lines_errors_name_the_file_and_what_to_do(tmp_path, content, says):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^`key` \(.*/x\).*?{says}"):
        lines_of(tmp_path / "x")


def test_read_lines_of_what_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\); do this"):
        lines_of(tmp_path / "no")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); do this"):
        lines_of(tmp_path)


def test_no_content_of_files_that_may_be_right(tmp_path):
    (tmp_path / "x").write_bytes(b"PK\x03\x04")
    assert no_content(tmp_path / "x") is None and no_content(tmp_path / "no") is None
    (tmp_path / "x").write_bytes(LFS)
    assert "git lfs pull" in no_content(tmp_path / "x")


def test_read_pieces_may_hold_other_spaces(tmp_path):
    pieces = ["<blk>", *(f"A{c}B" for c in SEPARATORS), "#1", " "]
    text = "".join(f"{piece} {i}\r\n" for i, piece in enumerate(pieces))
    (tmp_path / "tokens.txt").write_bytes(text.encode())
    assert read_pieces(tmp_path / "tokens.txt", "tokens.txt", "do this") == pieces
    (tmp_path / "tokens.txt").write_bytes((text + "Z 99\n").encode())
    with pytest.raises(ValueError, match=rf"tokens.txt, line {len(pieces) + 1} \('Z 99'\) must be a token and its id"):
        read_pieces(tmp_path / "tokens.txt", "tokens.txt", "do this")


@pytest.mark.parametrize(
    "pieces, kept",
    [
        (["<blk>", "#1", "A", "#0", "#1", "#2"], 3),
        (["<blk>", "#1", "A"], 3),
        (["<blk>", "#0"], 1),
        (["<blk>", "A", "#1"], 3),
        (["#0", "A", "#1", "#2"], 4),
        (["#1"], 1),
        ([], 0),
    ],
)
def test_only_disambiguation_symbols_are_left_out(pieces, kept):
    assert without_disambiguation(pieces) == pieces[:kept]


def test_names_of_files_that_are_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(ValueError, match="cannot be read"):
        list(read_lines(path, path, "do this"))
