"""JSON files whose shape is a pydantic model: read with errors that name file, field and remedy; written in one form.

A model takes what JSON has, and no other type in its place: a bool is no number, text is none either. Fields that it
does not know are kept. Importing this module imports pydantic, which devices do without.
"""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from twopass_kd.files.write import write_text_atomically


def _check_number(value: Any, is_number: ValidatorFunctionWrapHandler) -> Any:
    is_number(value)
    return value


# A whole number stays whole, so that a file that is read and written again stays the same.
Number = Annotated[float, WrapValidator(_check_number)]
Shape = TypeVar("Shape")


class JsonModel(BaseModel):
    """An object of a JSON file, its fields in the order in which they are written."""

    model_config = ConfigDict(strict=True, extra="allow", use_attribute_docstrings=True)


def read_json(path: Path, kind: type[Shape], remedy: str, error: type[ValueError] = ValueError) -> Shape:
    """The content of a JSON file.

    Args:
      kind: what it must look like: a `JsonModel`, or another type that pydantic knows, e.g. `list[Row]`.
      remedy: ends the message of an error, e.g. "run stage 8 again".
      error: the type to raise.
    Raises:
      error: if the file is missing or no JSON, or a field is missing or of another type, naming it.
    """
    try:
        return TypeAdapter(kind).validate_json(Path(path).read_bytes())
    except OSError as e:
        raise error(f"{path} cannot be read ({e.strerror or e}); {remedy}") from e
    except ValidationError as e:
        name, what = describe_problem(e)
        raise error(f"{path}{name and f': `{name}`'} {what}; {remedy}") from e


def write_json(path: Path, content: JsonModel, ensure_ascii: bool = True) -> None:
    """Write a file that `read_json` reads, indented; fields that were never set are left out."""
    plain = content.model_dump(exclude_unset=True)
    write_text_atomically(path, json.dumps(plain, indent=2, ensure_ascii=ensure_ascii) + "\n")


def describe_problem(problem: ValidationError) -> tuple[str, str]:
    """Where the first thing is that is wrong, and what: `rows[0].bytes`, `(True) must be a valid integer`.

    The place is empty where it is the whole.
    """
    errors = problem.errors()
    first = errors[0]
    kind, loc = first["type"], [part for part in first["loc"] if part != "[key]"]
    if kind == "json_invalid":
        return "", f"must be JSON, but is not ({first['msg'].removeprefix('Invalid JSON: ')})"
    if kind == "missing":
        missing = [str(e["loc"][-1]) for e in errors if e["type"] == kind and e["loc"][:-1] == first["loc"][:-1]]
        where, what = loc[:-1], f"must have {'item ' if isinstance(loc[-1], int) else ''}{', '.join(missing)}"
    else:
        where, what = loc, f"({first['input']!r:.60}) must {first['msg'].partition(' should ')[2]}"
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return name.removeprefix("."), what
