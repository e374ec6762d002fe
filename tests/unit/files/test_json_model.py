import json

import pytest

from twopass_kd.config.schema import ConfigError
from twopass_kd.files.json_model import JsonModel, Number, read_json, write_json


class Inner(JsonModel):
    c: Number


class Outer(JsonModel):
    a: int
    b: list[Inner]
    d: bool = False
    e: tuple[Number, Number] | None = None
    f: dict[str, Inner] = {}


@pytest.mark.parametrize(
    "content, says",
    [
        (b'{"a": 1', r"x must be JSON, but is not \(.+\); do this"),
        (b'{"a": "\xff"}', r"x must be JSON, but is not \(.+\); do this"),
        (b"[" * 100000, r"x must be JSON, but is not \(.+\); do this"),
        (b"[]", r"x \(\[\]\) must be an object; do this"),
        (b"{}", "x must have a, b; do this"),
        (b'{"a": "1", "b": []}', r"x: `a` \('1'\) must be a valid integer; do this"),
        (b'{"a": true, "b": []}', r"x: `a` \(True\) must be a valid integer; do this"),
        (b'{"a": 1.0, "b": []}', r"x: `a` \(1.0\) must be a valid integer; do this"),
        (b'{"a": 1, "b": [{"c": null}]}', r"x: `b\[0\].c` \(None\) must be a valid number; do this"),
        (b'{"a": 1, "b": [{"c": true}]}', r"x: `b\[0\].c` \(True\) must be a valid number; do this"),
        (b'{"a": 1, "b": [{"c": "1"}]}', r"x: `b\[0\].c` \('1'\) must be a valid number; do this"),
        (b'{"a": 1, "b": [{"c": 1}, {}]}', r"x: `b\[1\]` must have c; do this"),
        (b'{"a": 1, "b": {}}', r"x: `b` \({}\) must be a valid array; do this"),
        (b'{"a": 1, "b": [], "d": 1}', r"x: `d` \(1\) must be a valid boolean; do this"),
        (b'{"a": 1, "b": [], "e": [1]}', r"x: `e` must have item 1; do this"),
        (b'{"a": 1, "b": [], "f": {"k": 3}}', r"x: `f.k` \(3\) must be an object; do this"),
    ],
)
def test_read_json_errors_name_file_field_and_what_to_do(tmp_path, content, says):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_json(tmp_path / "x", Outer, "do this", ConfigError)


def test_read_json_of_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"x cannot be read \(No such file or directory\); do this"):
        read_json(tmp_path / "x", Outer, "do this")


def test_a_file_that_is_read_and_written_again_stays_the_same(tmp_path):
    content = {"a": 1, "b": [{"c": 2, "more": "é"}, {"c": 2.0}], "e": [1, 2.5], "z": {"any": [None, True]}}
    for ensure_ascii in (True, False):
        text = json.dumps(content, indent=2, ensure_ascii=ensure_ascii) + "\n"
        (tmp_path / "x").write_text(text, encoding="utf-8")
        write_json(tmp_path / "x", read_json(tmp_path / "x", Outer, "do this"), ensure_ascii)
        assert (tmp_path / "x").read_text(encoding="utf-8") == text
