"""docs/development.md shows the imports between rooms as they are."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_the_drawing_in_the_docs_is_that_of_the_code(monkeypatch):
    pytest.importorskip("grimp")
    monkeypatch.syspath_prepend(ROOT / "tools")
    draw_imports = importlib.import_module("draw_imports")
    said = "the imports between rooms have changed; run `.venv/bin/python tools/draw_imports.py`"
    assert draw_imports.page() == draw_imports.PAGE.read_text(encoding="utf-8"), said
    assert "  bin --> training\n" in draw_imports.drawing()
