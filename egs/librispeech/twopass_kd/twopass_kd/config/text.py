"""Settings as people write them, in YAML files and as `key=value`, turned into values of the schema's types.

What a value means is said by the schema, not by how it looks: where that wants text, `NO`, `007` and `run #2` are text.
"""

import dataclasses
import difflib
import math
import re
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING

from twopass_kd.config.schema import Config, ConfigError

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WANTED = {str: "text", int: "a whole number of at most 18 digits", float: "a finite number", bool: "true or false"}
_MERGE_TAG = "tag:yaml.org,2002:merge"
_ELEMENT = re.compile(r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<plain>[^,]*?))\s*(?:,|$)""", re.DOTALL)


class _TextLoader(yaml.SafeLoader):
    """YAML whose plain scalars are text as written, but for null; a key that is there twice is an error."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] in (_MERGE_TAG, "tag:yaml.org,2002:null")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[str, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = None if key_node.tag == _MERGE_TAG else self.construct_object(key_node, deep=True)
            if key_node.tag != _MERGE_TAG and not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_files(path: Path) -> list[dict[str, Any]]:
    """The settings of a YAML file, typed, behind those of the file that its key `base` names, if it has one.

    Raises:
      ConfigError: naming the file, and the line or the key.
    """
    chain: list[Path] = []
    trees: list[dict[str, Any]] = []
    following: Path | None = Path(path)
    while following is not None:
        path = following
        if path.resolve() in chain:
            raise ConfigError(f"{path}: `base` must not lead back to the file itself; name another, or none")
        chain.append(path.resolve())
        named = "`--conf`" if len(chain) == 1 else "`base`"
        content = _read_yaml(path, named)
        base = content.pop("base", None)
        if base is not None and not (isinstance(base, str) and base):
            raise ConfigError(f"{path}: `base` ({base}) must be the name of a YAML file")
        trees.insert(0, typed(content, where=f"{path}: "))
        following = None if base is None else path.parent / base
    return trees


def _read_yaml(path: Path, named: str) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{named} ({path}) must be an existing YAML file; {path.parent} has {', '.join(near) or 'none'}"
        )
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{named} ({path}) must be readable: {e.strerror}") from e
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ConfigError(f"{path}, line {line}, must be in UTF-8; save the file in that encoding") from e
    try:
        content = yaml.load(text, _TextLoader)
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}{_explain(e, with_line=True)}: not valid YAML") from e
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, as conf/mini.yaml does")
    return content


def _explain(e: yaml.YAMLError, with_line: bool) -> str:
    mark = getattr(e, "problem_mark", None) or getattr(e, "context_mark", None)
    line = f", line {mark.line + 1}" if with_line and mark is not None else ""
    return f"{line}: {getattr(e, 'problem', None) or getattr(e, 'reason', None) or 'a mistake'}"


def parse_override(item: str) -> dict[str, Any]:
    """The nest of dicts that `key=value` stands for, its value of the schema's type.

    Text stands for itself, to the last character; for a setting that may be null, `null` is. A list is
    `[a, b]`, whose words may be quoted where they have a comma; keys and values are YAML, as in `{simple: 1}`.

    Raises:
      ConfigError: naming the override.
    """
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"override ({item}) must look like key=value, e.g. train.max_duration=20")
    if re.search("[\ud800-\udfff]", item):  # bytes that Python could not decode
        raise ConfigError(
            f"override ({ascii(item)}) must be in UTF-8; is the locale (LC_ALL) the one that it was typed in?"
        )
    where = f"override ({item}): "
    parts = key.split(".")
    kind, optional = _kind_of(parts, where)
    value: Any = text
    if optional and text in ("null", ""):
        if not text:
            raise ConfigError(f"{where}`{key}` must have a value; {key}=null is for none")
        value = None
    elif get_origin(kind) is list:
        value = _split_list(text, where)
    elif get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        try:
            value = yaml.load(text, _TextLoader)
        except yaml.YAMLError as e:
            raise ConfigError(f"{where}not valid YAML{_explain(e, with_line=False)}") from e
    for part in reversed(parts):
        value = {part: value}
    return typed(value, where=where)


def _kind_of(parts: list[str], where: str) -> tuple[Any, bool]:
    """The type that the schema has for a key, and whether it may be null."""
    kind, optional = Config, False
    for depth, part in enumerate(parts):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
            if part not in hints:
                raise _unknown(part, ".".join(parts[: depth + 1]), hints, where)
            kind = hints[part]
        kind, optional = _without_none(kind)
    return kind, optional


def _without_none(kind: Any) -> tuple[Any, bool]:
    if get_origin(kind) not in (Union, UnionType):
        return kind, False
    return next(k for k in get_args(kind) if k is not type(None)), True


def _unknown(name: str, key: str, hints: dict[str, Any], where: str) -> ConfigError:
    near = difflib.get_close_matches(name, hints, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(hints) or 'none below a value'}"
    return ConfigError(f"{where}`{key}` is not a key of this config; {hint}")


def _split_list(text: str, where: str) -> list[str]:
    inner = text.strip()
    if not (len(inner) > 1 and inner[0] == "[" and inner[-1] == "]"):
        raise ConfigError(f"{where}the value must be a list in brackets, e.g. [a,b]")
    inner, words, at = inner[1:-1], [], 0
    while inner[at:].strip():
        found = _ELEMENT.match(inner, at)
        assert found is not None, inner  # `plain` takes anything up to a comma
        if found["plain"] == "":
            raise ConfigError(f"{where}the list must have a value between its commas")
        words.append(next(word for word in found.groups() if word is not None))
        at = found.end()
    return words


def typed(value: Any, kind: Any = Config, key: str = "", where: str = "") -> Any:
    """`value`, made of dicts, lists and text (or what such text stands for), with leaves of the types of schema `kind`.

    Raises:
      ConfigError: a key that the schema does not have, or a value that is not of its type; the message begins with
        `where`.
    """
    kind, optional = _without_none(kind)
    if value is None and optional:
        return None
    origin, inside = get_origin(kind), get_args(kind)
    prefix = f"{key}." if key else ""
    if dataclasses.is_dataclass(kind) or origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}`{key}` ({_shown(value)}) must hold keys and values, e.g. {{key: value}}")
        if origin is dict:
            return {name: typed(v, inside[1], prefix + name, where) for name, v in value.items()}
        hints = get_type_hints(kind)
        for name in value:
            if name not in hints:
                raise _unknown(name, prefix + name, hints, where)
        return {name: typed(v, hints[name], prefix + name, where) for name, v in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where}`{key}` ({_shown(value)}) must be a list in brackets, e.g. [a,b]")
        return [typed(v, inside[0], key, where) for v in value]
    found = _leaf(value, kind)
    if found is None:
        quote = '; in quotes, "null" is a word' if value is None and kind is str else ""
        raise ConfigError(f"{where}`{key}` ({_shown(value)}) must be {_WANTED[kind]}{quote}")
    return found


def _leaf(value: Any, kind: type) -> Any:
    """`value` as text, a number or a bool; None where it is not one."""
    if kind is str:
        return value if isinstance(value, str) and value != MISSING else None
    if kind is bool:
        return value if isinstance(value, bool) else _BOOLS.get(str(value).lower())
    if isinstance(value, bool) or not isinstance(value, (str, int, kind)):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return None
    fits = abs(number) < 10**18 if kind is int else math.isfinite(number)  # torch's and NumPy's have 64 bits
    return number if fits else None


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
