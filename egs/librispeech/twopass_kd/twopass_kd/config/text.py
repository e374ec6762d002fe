"""Settings as people write them, in YAML files and as `key=value`: nests of dicts and lists of text."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from twopass_kd.config.schema import Config, ConfigError

_MERGE_TAG = "tag:yaml.org,2002:merge"
_ELEMENT = re.compile(r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<plain>[^,]*?))\s*(?:,|$)""", re.DOTALL)


class Layer(NamedTuple):
    """Settings that one file or one override gives."""

    where: str  # how an error in them begins
    settings: dict[str, Any]


class Replacement(dict):
    """A map that takes the place of the one below it, where another adds to it."""


def merge(layers: Sequence[Layer]) -> dict[str, Any]:
    """The settings of all layers; the last ones win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge_into(merged, layer.settings)
    return merged


def _merge_into(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and not isinstance(value, Replacement):
            if not isinstance(below.get(key), dict):
                below[key] = {}
            _merge_into(below[key], value)
        else:
            below[key] = value


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
        return super().construct_mapping(node, deep=True)  # which refuses a map that holds itself


def read_files(path: Path, above: Sequence[Path] = ()) -> list[Layer]:
    """The settings of a YAML file, behind those of the file that its key `base` names, if it has one.

    Args:
      above: the files that name this one as theirs.
    Raises:
      ConfigError: naming the file, and the line or the key.
    """
    if path.resolve() in above:
        raise ConfigError(f"{path}: `base` must not lead back to the file itself; name another, or none")
    content = _read_yaml(path, "`base`" if above else "`--conf`")
    layer = Layer(f"{path}: ", content)
    base = content.pop("base", None)
    if base is None:
        return [layer]
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: `base` ({base}) must be the name of a YAML file")
    return [*read_files(path.parent / base, [*above, path.resolve()]), layer]


def _read_yaml(path: Path, named: str) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{named} ({path}) must be an existing YAML file; {path.parent} has {', '.join(near) or 'none'}"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _TextLoader)
    except OSError as e:
        raise ConfigError(f"{named} ({path}) must be readable: {e.strerror}") from e
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        raise ConfigError(f"{path}, line {line}, must be in UTF-8; save the file in that encoding") from e
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}{_explain(e, with_line=True)}: not valid YAML") from e
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, as conf/mini.yaml does")
    return content


def _explain(e: yaml.YAMLError, with_line: bool) -> str:
    mark = getattr(e, "problem_mark", None) or getattr(e, "context_mark", None)
    line = f", line {mark.line + 1}" if with_line and mark is not None else ""
    return f"{line}: {getattr(e, 'problem', None) or getattr(e, 'reason', None) or 'a mistake'}"


def parse_override(item: str) -> Layer:
    """The settings that `key=value` stands for.

    Text stands for itself, to the last character; for a setting that may be null, `null` is. A list is
    `[a, b]`, whose words may be quoted where they have a comma; keys and values are YAML, as in `{simple: 1}`. They are
    added to those of a section, and take the place of a setting.

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
    kind, optional = kind_of(parts, where)
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
        if isinstance(value, dict) and get_args(kind)[1:] and not dataclasses.is_dataclass(get_args(kind)[1]):
            value = Replacement(value)
    for part in reversed(parts):
        value = {part: value}
    return Layer(where, value)


def kind_of(parts: Sequence[str], where: str) -> tuple[Any, bool]:
    """The type that the schema has for a key, and whether it may be null.

    Raises:
      ConfigError: if it has no such key, with the one that may be meant.
    """
    kind, optional = Config, False
    for depth, part in enumerate(parts):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            if get_origin(kind) is list:  # pydantic's places leave the numbers of entries out
                (kind,) = get_args(kind)
            hints = _hints(kind)
            if part not in hints:
                hint = did_you_mean(part, hints) or f"known keys: {', '.join(hints) or 'none below a value'}"
                raise ConfigError(f"{where}`{'.'.join(parts[: depth + 1])}` is not a key of this config; {hint}")
            kind = hints[part]
        optional = get_origin(kind) in (Union, UnionType)
        if optional:
            kind = next(k for k in get_args(kind) if k is not type(None))
    return kind, optional


def _hints(kind: Any) -> dict[str, Any]:
    """The types of a section's keys; none of a value."""
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = get_type_hints(kind)
    return {field.alias or name: hints[name] for name, field in kind.__pydantic_fields__.items()}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that names the one out of `known` that is like `name`; empty where none is."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{near[0]}`?" if near else ""


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
