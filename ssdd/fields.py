"""A configuration as plain data and back, and its fields by dotted names such as `dynamic.alpha`."""

import dataclasses
import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ssdd.checks import validate
from ssdd.config import Config, ConfigError
from ssdd.storage.paths import RemotePath, to_path


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON data: nested dicts, lists, strings, numbers."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(data: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        TypeError, ValueError: `data` has other fields than this version's configuration, or a value of a wrong type.
    """
    return _rebuild(Config, data)


def _rebuild(kind: Any, data: Any) -> Any:
    if not dataclasses.is_dataclass(kind):
        return _convert(kind, data)
    hints = get_type_hints(kind)
    if set(data) != set(hints):
        raise ValueError(f"{kind.__name__}: fields differ: {sorted(set(data) ^ set(hints))}")  # type: ignore[union-attr]
    return kind(**{name: _rebuild(hints[name], value) for name, value in data.items()})  # type: ignore[operator]


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one flat dict, whose keys are dotted names as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def changed(default: Config, values: dict[str, Any]) -> Config:
    """A copy of `default` with some fields changed; the copy has passed `validate`.

    Args:
        default: the configuration with the values of all other fields.
        values: the new values by dotted name, such as `dynamic.alpha`, with underscores or dashes. Each has its field's
            type or is a string as on the command line.

    Raises:
        ConfigError: a field does not exist, or a value has a wrong type or cannot work.
    """
    typed = {}
    for name, value in values.items():
        name = name.replace("-", "_")
        kind = type_of(name)
        try:
            typed[name] = _convert(kind, value)
        except (TypeError, ValueError) as error:
            if RemotePath in get_args(kind) and isinstance(value, str):
                raise ConfigError(f"{name}: {error}") from None
            shown = "the URL" if "://" in str(value) else repr(value)  # a URL may contain a password
            raise ConfigError(f"{name}: {shown} is not a valid value; expected {_type_name(kind)}") from None
    config = replaced(default, typed)
    validate(config)
    return config


def type_of(name: str) -> Any:
    """The declared type of a field, by its dotted name. ConfigError if there is no such field."""
    kind: Any = Config
    for word in name.split("."):
        kind = get_type_hints(kind).get(word) if dataclasses.is_dataclass(kind) else None
    if kind is None or dataclasses.is_dataclass(kind):  # unknown, or a group of fields
        near = difflib.get_close_matches(name, _names(Config), n=3)
        raise ConfigError(f"there is no field {name}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    return kind


def _names(kind: Any, prefix: str = "") -> list[str]:
    """The dotted names of all fields of a configuration class."""
    out: list[str] = []
    for name, inner in get_type_hints(kind).items():
        out += _names(inner, f"{prefix}{name}.") if dataclasses.is_dataclass(inner) else [prefix + name]
    return out


def _convert(kind: Any, value: Any) -> Any:
    """A value, or a string as on the command line, converted to a field's declared type.

    Raises:
        TypeError, ValueError: the conversion is impossible.
    """
    origin, inner = get_origin(kind), get_args(kind)
    optional = type(None) in inner
    if optional and value in (None, "None"):
        return None
    if RemotePath in inner or kind is Path:
        path = to_path(_text(value))
        if kind is Path and isinstance(path, RemotePath):
            raise ValueError("must be a file on a disk")
        return path
    if optional:
        return _convert(next(one for one in inner if one is not type(None)), value)
    if origin is Literal:
        return inner[[str(choice) for choice in inner].index(_text(value))]
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        kinds = [inner[0]] * len(items) if inner[-1] is Ellipsis else inner
        return tuple(_convert(one, item) for one, item in zip(kinds, items, strict=True))
    if kind is bool:
        return ("False", "True").index(str(value)) == 1
    return kind(_text(value))  # str, int, float


def _text(value: Any) -> str:
    """A scalar as a string, as on the command line; TypeError for other values."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Path, RemotePath)):
        raise TypeError
    return str(value)


def _type_name(kind: Any) -> str:
    return getattr(kind, "__name__", "") if isinstance(kind, type) and not get_args(kind) else str(kind)


def replaced(config: Any, fields: dict[str, Any]) -> Any:
    """A copy of `config` with new values by dotted name, each of its field's type; `validate` is not called."""
    for name, value in fields.items():
        head, _, rest = name.partition(".")
        config = replace(config, **{head: replaced(getattr(config, head), {rest: value}) if rest else value})
    return config
