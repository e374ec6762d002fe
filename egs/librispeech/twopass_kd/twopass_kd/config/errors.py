"""What pydantic finds wrong with settings, in the words of this recipe: the key, the value, and what it must be."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from twopass_kd.config.schema import ConfigError
from twopass_kd.config.text import Layer, did_you_mean, kind_of, merge

# By pydantic's name of an error; types.py and schema.py say the rest.
_MUST = {
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
    "list_type": "must be a list in brackets, e.g. [a,b]",
    "dict_type": "must hold keys and values, e.g. {{key: value}}",
    "dataclass_type": "must hold keys and values, e.g. {{key: value}}",
    "literal_error": "must be one of {expected}",
    "value_error": "{error}",
}


def explain(e: ValidationError, files: Sequence[Layer], overrides: Sequence[Layer]) -> ConfigError:
    """An error that says on one line what is wrong first, and in which file or override."""
    problems = e.errors(include_url=False)
    missing = [problem["loc"] for problem in problems if problem["type"] == "missing"]
    given = f"these keys must be given: {', '.join(sorted(map(_named, missing)))}"
    phases = merge(files).get("phases") or {}
    for section, name, *_ in (loc for loc in missing if len(loc) > 1):
        if section == "phases" and name not in phases:
            hint = did_you_mean(name, phases) or f"known phases: {', '.join(phases)};"
            where = _where([section, name], overrides)
            return ConfigError(f"{where}`phases.{name}` is not a phase of this config; {hint} for a new one {given}")
    wrong = next((problem for problem in problems if problem["type"] != "missing"), None)
    if wrong is None:
        where = [_where_it_begins(loc, [*overrides, *files]) for loc in missing]
        named = [_named(loc) for loc, its in zip(missing, where, strict=True) if its == where[0]]
        return ConfigError(f"{where[0]}these keys must be given: {', '.join(sorted(named))}")
    kind, loc, context = wrong["type"], wrong["loc"], wrong.get("ctx", {})
    if isinstance(loc[-1], int) and not isinstance(wrong["input"], dict):  # the value says which one it is
        loc = loc[:-1]
    where, key = _where(loc, [*files, *overrides]), _named(loc)
    if kind == "unexpected_keyword_argument":
        kind_of([part for part in loc if isinstance(part, str)], where)  # which raises it
    if context in ({"gt": 0}, {"ge": 0}):
        must = "must be positive" if "gt" in context else "must not be negative"
    else:
        must = _MUST[kind].format(**context) if kind in _MUST else f"must be right: {wrong['msg']}"
    if kind == "literal_error":
        must = must.replace("'", "").replace(" or ", ", ")
    if must.startswith("`"):  # of several settings, which may be those of several layers, but in an entry of a list
        return ConfigError(f"{where if isinstance(loc[-1], int) else ''}`{key}.{must[1:]}")
    shown = "" if must.startswith("(") or loc[-1] == "[key]" else f"({_shown(wrong['input'])}) "
    return ConfigError(f"{where}`{key}` {shown}{must}")


def _named(loc: Sequence[str | int]) -> str:
    """`phases.teacher/rnnt.base_lr`, `claims[1].kind`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc if part != "[key]"]
    return "".join(parts).removeprefix(".")


def _where(loc: Sequence[str | int], layers: Sequence[Layer]) -> str:
    """How errors of the last layer begin that has this key."""
    for layer in reversed(layers):
        found: Any = layer.settings
        for key in (part for part in loc if part != "[key]"):
            entries = dict(enumerate(found)) if isinstance(found, list) else found
            found = entries.get(key, layer) if isinstance(entries, dict) else layer
        if found is not layer:
            return layer.where
    return ""


def _where_it_begins(loc: Sequence[str | int], layers: Sequence[Layer]) -> str:
    """Of a key that is in no layer: how errors of the layer begin that has the section which should have it."""
    sections = (loc[:depth] for depth in range(len(loc) - 1, -1, -1))
    return next(filter(None, (_where(section, layers) for section in sections)), "")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value) if str(value).isprintable() else repr(value)
