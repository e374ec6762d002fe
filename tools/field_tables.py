"""Writes tables of the fields of pydantic models into two pages of docs/, between marks that name the models.

    .venv/bin/python tools/field_tables.py     # after a change of the models; a test compares

A page has `<!-- fields of package.module.Model -->` and, some lines below, `<!-- end of fields -->`. What is between
them is replaced. Types, defaults and meanings are those of the model's JSON schema.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "docs/settings.md", ROOT / "docs/files.md")
_BETWEEN_MARKS = re.compile(r"(<!-- fields of (\S+)\.(\w+) -->\n).*?(<!-- end of fields -->)", re.DOTALL)
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
_LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def with_tables(page: str) -> str:
    """The text of a page with new tables between its marks."""

    def replace(marks: re.Match) -> str:
        model = getattr(importlib.import_module(marks[2]), marks[3])
        return f"{marks[1]}\n{tables(model)}\n{marks[4]}"

    return _BETWEEN_MARKS.sub(replace, page)


def tables(model: Any) -> str:
    """Markdown: a table of the model's fields, and one below it, with a heading, for each model inside."""
    schema = TypeAdapter(model).json_schema()
    definitions = schema.pop("$defs", {})
    places: dict[str, list[str]] = {}  # where a model inside lies: the dotted names that lead to it

    def find_places(fields: dict[str, Any], prefix: str) -> None:
        for name, field in fields.items():
            for inside, suffix in _models_in(field):
                places.setdefault(inside, []).append(f"{prefix}{name}{suffix}")
                find_places(definitions[inside].get("properties", {}), f"{prefix}{name}{suffix}.")

    find_places(schema["properties"], "")
    blocks = [_table(schema, definitions)]
    for inside, keys in places.items():
        if "properties" in definitions[inside]:
            blocks.append(f"### {', '.join(f'`{key}`' for key in keys)}\n")
            blocks.append(_table(definitions[inside], definitions))
    return "\n".join(blocks)


def _table(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        inside = [definitions[model].get("description", "") for model, _ in _models_in(field)]
        meaning = " ".join((field.get("description") or " ".join(inside)).split())
        default = f"`{json.dumps(field['default'], ensure_ascii=False)}`" if "default" in field else ""
        if name in schema.get("required", ()):
            default = "must be given"
        cells = f"`{name}`", _type(field, definitions), default, meaning
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _models_in(field: dict[str, Any], suffix: str = "") -> list[tuple[str, str]]:
    """The models that a field holds, each with what follows the field's name on the way there."""
    if "$ref" in field:
        return [(field["$ref"].split("/")[-1], suffix)]
    inside = [(option, suffix) for way in ("anyOf", "oneOf", "allOf") for option in field.get(way, ())]
    inside += [(field[way], suffix + step) for way, step in (("items", "[]"), ("additionalProperties", ".*"))
               if isinstance(field.get(way), dict)]  # fmt: skip
    return [found for option, way in inside for found in _models_in(option, way)]


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    options = [option for way in ("anyOf", "oneOf", "allOf") for option in field.get(way, ())]
    if options:
        return " or ".join(_type(option, definitions) for option in options)
    if "$ref" in field:
        model = definitions[field["$ref"].split("/")[-1]]
        return "keys below" if "properties" in model else _type(model, definitions)
    if "enum" in field or "const" in field:
        return ", ".join(f"`{choice}`" for choice in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        least = f", at least {field['minItems']}" if "minItems" in field else ""
        return f"list of {_type(field.get('items', {}), definitions)}{least}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")  # True: of any type
        return f"map to {_type(values, definitions)}" if isinstance(values, dict) else "map"
    limits = [f"{sign} {field[limit]:g}" for limit, sign in _LIMITS.items() if limit in field]
    return " ".join([_TYPES.get(field.get("type", ""), "anything"), ", ".join(limits)]).strip()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "egs/librispeech/twopass_kd"))
    for path in PAGES:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
