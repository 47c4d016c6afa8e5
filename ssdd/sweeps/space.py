"""The search space of a sweep: which fields take which values. This module imports neither Ray nor MLflow."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdd.checks import validate
from ssdd.config import Config, ConfigError
from ssdd.fields import changed, flatten, replaced, to_dict, type_of

Point = dict[str, Any]
"""Values by dotted field name."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool
    whole: bool
    """Integers only."""

    def at(self, share: float) -> float:
        """The value at a share 0..1 of the way from `low` to `high`."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.whole else value


Space = dict[str, tuple[Any, ...] | Range]


def read(base: Config, texts: Iterable[str], allowed: tuple[str, ...]) -> Space:
    """Read a search space from texts `FIELD=A,B,...` and `FIELD=LOW:HIGH[:log]`.

    Args:
        base: the configuration whose fields are varied.
        texts: one for each field.
        allowed: fields that the sweep can vary, or prefixes of their names, for example `crf.`.

    Raises:
        ConfigError: names the text and what is wrong with it.
    """
    space: Space = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        try:
            if not equals:
                raise ConfigError("is not of the form FIELD=VALUES")
            if name in space:
                raise ConfigError("names this field for the second time; name it once")
            if isinstance(flatten(to_dict(base)).get(name), list):
                raise ConfigError("is a field of several values, which cannot be swept")
            if not name.startswith(allowed):
                type_of(name)  # raises ConfigError for an unknown field
                raise ConfigError(
                    f"this sweep does not vary this field; it varies {', '.join(a.rstrip('.') for a in allowed)}"
                )
            space[name] = _dimension(base, name, values)
        except ConfigError as error:
            raise ConfigError(f"--sweep.space {text}: {error}") from error
    if not space:
        raise ConfigError("--sweep.space: names no field; give FIELD=VALUES")
    return space


def _dimension(base: Config, name: str, text: str) -> tuple[Any, ...] | Range:
    if ":" in text:
        low, _, rest = text.partition(":")
        high, _, scale = rest.partition(":")
        if scale not in ("", "log"):
            raise ConfigError("a range is LOW:HIGH or LOW:HIGH:log")
        first, last = (_value(base, name, value) for value in (low, high))
        if isinstance(first, bool) or not isinstance(first, (int, float)):
            raise ConfigError("a range needs a field of numbers")
        if not first < last:
            raise ConfigError("a range needs LOW < HIGH")
        if scale and first <= 0:
            raise ConfigError("a logarithmic range needs LOW > 0")
        return Range(first, last, scale == "log", isinstance(first, int))
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not values:
        raise ConfigError("needs at least one value")
    return tuple(dict.fromkeys(_value(base, name, value) for value in values))


def _value(base: Config, name: str, text: str) -> Any:
    """Read a text as a value of the field's type."""
    return flatten(to_dict(changed(base, {name: text})))[name]


def grid(space: Space) -> list[Point]:
    """Every combination of the values.

    Raises:
        ConfigError: a field has a range instead of values.
    """
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if ranges:
        raise ConfigError(f"--sweep.space {ranges[0]}: a grid needs values; for a range add --sweep.search random")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]  # type: ignore[arg-type]


def random(space: Space, count: int, seed: int) -> list[Point]:
    """Up to `count` different points. Each field is drawn independently; the same seed gives the same points."""
    generator = np.random.default_rng(seed)

    def draw(values: tuple[Any, ...] | Range) -> Any:
        return values.at(generator.random()) if isinstance(values, Range) else values[generator.integers(len(values))]

    drawn = ({name: draw(values) for name, values in space.items()} for _ in range(10 * count))
    different = {tuple(point.values()): point for point in drawn}
    return list(different.values())[:count]


def checked(base: Config, point: Point) -> Config:
    """The configuration at a point of the space.

    Raises:
        ConfigError: this configuration cannot work.
    """
    config = replaced(base, point)
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"at {label(point)}: {error}") from error
    return config


def label(point: Point) -> str:
    """A short name of the point: for each field, its short name and its value."""
    names = short_names(point)
    return " ".join(f"{names[name]}={_text(value)}" for name, value in point.items())


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """The last word of each field's name, or its last two, three, ... words if fewer do not tell all fields apart."""
    words = {name: name.split(".") for name in fields}
    depth = 1
    while len({tuple(w[-depth:]) for w in words.values()}) < len(words):
        depth += 1
    return {name: ".".join(w[-depth:]) for name, w in words.items()}


def flag(name: str, value: Any) -> str:
    """The command-line flag that sets a field to a value."""
    if isinstance(value, bool):
        group, dot, last = name.rpartition(".")
        name, value = f"{group}{dot}{'' if value else 'no-'}{last}", None
    dashed = f"--{name.replace('_', '-')}"
    return dashed if value is None else f"{dashed} {value}"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
