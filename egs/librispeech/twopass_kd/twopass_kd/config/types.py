"""The types of settings. They say what the text of a YAML file or an override stands for, and what may be there.

What a value means is said by its type, not by how it looks: where that is `Text`, `NO`, `007` and `run #2` are text.
A validator's error is what follows the key and its value, "must ...", or what follows the key, "(value) must ..."; or
it begins with a key of its own, which is below the validator's.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

_NAME = re.compile(r"(?![.+-])(?:[\w.+-]|[^\x00-\x7f])+")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _text(value: Any) -> str:
    if not isinstance(value, str) or value == "???":  # a common mark of what is still to be filled in
        raise ValueError("must be text" + '; in quotes, "null" is a word' * (value is None))
    return value


def _number(kind: type, fits: Callable[[Any], bool], wanted: str) -> Callable[[Any], Any]:
    """A reader of numbers of type `kind` that are within what torch and NumPy can hold."""

    def read(value: Any) -> Any:
        try:
            number = kind(value) if isinstance(value, (str, int, kind)) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or not fits(number):
            raise ValueError(f"must be {wanted}")
        return number

    return read


def _true_or_false(value: Any) -> bool:
    found = value if isinstance(value, bool) else _BOOLS.get(str(value).lower())
    if found is None:
        raise ValueError("must be true or false")
    return found


Whole = BeforeValidator(_number(int, lambda number: abs(number) < 10**18, "a whole number of at most 18 digits"))
Finite = BeforeValidator(_number(float, math.isfinite, "a finite number"))

Text = Annotated[str, BeforeValidator(_text)]
Bool = Annotated[bool, BeforeValidator(_true_or_false)]
Int = Annotated[int, Whole]
PositiveInt = Annotated[int, Field(gt=0), Whole]
NonNegativeInt = Annotated[int, Field(ge=0), Whole]
Float = Annotated[float, Finite]
PositiveFloat = Annotated[float, Field(gt=0), Finite]
NonNegativeFloat = Annotated[float, Field(ge=0), Finite]
Share = Annotated[float, Field(ge=0, lt=1), Finite]
PositiveShare = Annotated[float, Field(gt=0, lt=1), Finite]
Filled = Field(min_length=1)  # of lists


def _each_once(entries: list) -> list:
    for entry in entries:
        if entries.count(entry) > 1:
            raise ValueError(f"({entry}) must be there once")
    return entries


EachOnce = AfterValidator(_each_once)  # of lists
Range = Annotated[list[Float], Field(min_length=2, max_length=2), AfterValidator(sorted)]  # from its least to its most


def _check_folder_name(name: str, ours: Sequence[str]) -> str:
    """`name`, which becomes a folder beside those of `ours`, and a word that the shell takes apart at spaces."""
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise ValueError(
            f"({name!r}) must be made of letters, digits, `_`, `-`, `.` and `+`, and not begin with `-`, `.` or `+`,"
            " since folders are named so"
        )
    if name in ours:
        raise ValueError(f"({name}) must not be that, which is a folder of run.sh's; choose another name")
    return name


def folder_beside(*ours: str) -> AfterValidator:
    """A check of text that becomes the name of a folder beside ours."""
    return AfterValidator(lambda name: _check_folder_name(name, ours))


def _system_and_phase(name: str) -> str:
    if name.count("/") != 1:
        raise ValueError("must be named <system>/<phase>, e.g. student/rnnt_kd")
    for word in name.split("/"):
        _check_folder_name(word, ours=("decode", "export", "graphs", "log"))
    return name


PhaseName = Annotated[Text, AfterValidator(_system_and_phase)]


def as_sbatch_takes_it(pattern: str, example: str) -> AfterValidator:
    """A check of text by a regular expression for what sbatch understands."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be as sbatch takes it, e.g. {example}")
        return text

    return AfterValidator(check)
