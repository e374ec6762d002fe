"""docs/settings.md and docs/files.md are what tools/field_tables.py makes of the models, whichever they are."""

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("field_tables", ROOT / "tools" / "field_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings.md", "files.md"])
def test_page_is_what_the_tool_makes(tool, page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert tool.with_tables(text) == text, "run .venv/bin/python tools/field_tables.py"
    assert ("| `temperature` | number > 0 | `1.0` |" in text) == (page == "settings.md")


class Row(BaseModel):
    """One measurement."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    wer: float | None
    """errors by words,
    in percent | of one set"""
    method: Literal["greedy", "beam"] = "beam"


class Results(BaseModel):
    rows: Annotated[list[Row], Field(min_length=1)]
    by_set: dict[str, list[Row]] = Field({}, description="the same, by test set")
    count: int = Field(0, ge=0, lt=9)


def test_tables_of_nested_models_have_types_limits_defaults_and_meanings(tool):
    table, below = tool.tables(Results).split("\n### ")
    assert "| `rows` | list of keys below, at least 1 | must be given | One measurement. |" in table
    assert "| `by_set` | map to list of keys below | `{}` | the same, by test set |" in table
    assert "| `count` | whole number ≥ 0, < 9 | `0` |  |" in table
    assert below.startswith("`rows[]`, `by_set.*[]`\n")
    assert "| `wer` | number or null | must be given | errors by words, in percent \\| of one set |" in below
    assert '| `method` | `greedy`, `beam` | `"beam"` |  |' in below


def test_only_what_is_between_the_marks_is_replaced(tool):
    marks = "before\n<!-- fields of twopass_kd.config.schema.TokensConfig -->{}<!-- end of fields -->\nafter\n"
    page = tool.with_tables(marks.format("\nold\n"))
    assert page.startswith("before\n<!-- fields of") and page.endswith("<!-- end of fields -->\nafter\n")
    assert "`vocab_size`" in page and "old" not in page and tool.with_tables(page) == page
