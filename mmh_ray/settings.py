"""Settings as dataclasses: bounds beside the types, plain values in and out, unknown keys refused.

A section's fields carry their bounds in their types, which :class:`Section` checks whenever one is made, from a file or in code::

    @dataclass(frozen=True)
    class TrainConfig(Section):
        steps: Annotated[int, Range(1, 10**7)] = 400
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import types
import typing
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, Literal

from mmh_ray.errors import ConfigError

LONGEST_TEXT = 4096
"""Most characters of a text."""

_SHOWN = 200


@dataclass(frozen=True)
class Range:
    """Bound of a number: both ends are taken. NaN lies in no range."""

    low: float
    high: float

    def holds(self, value: Any) -> bool:
        """Whether a value is a number in the range."""
        number: Any = value if isinstance(value, Real) else math.nan
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"{self.low:.12g} to {self.high:.12g}"


@dataclass(frozen=True)
class Items:
    """Bound of a tuple: how many items it may have."""

    least: int
    most: int
    once: bool = False
    """Whether no item may be there twice."""

    def holds(self, value: Any) -> bool:
        """Whether a tuple has so many items."""
        return self.least <= len(value) <= self.most and (not self.once or len(set(value)) == len(value))

    def __str__(self) -> str:
        return f"{self.least} to {self.most} items" + (", each once" if self.once else "")


@dataclass(frozen=True)
class Matching:
    """Bound of a text: a regular expression that the whole of it matches."""

    pattern: str
    said: str
    """The same in words."""

    def holds(self, value: Any) -> bool:
        """Whether a text is of that form."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.said


@dataclass(frozen=True)
class Section:
    """Base of a section of the settings: refuses, by its dotted key, a value out of the bounds of its type."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        section = kind.__name__.removesuffix("Config").lower()
        for name, hint in hints_of(kind).items():
            value = getattr(self, name)
            expected = _expected(hint, value)
            require(expected is None, f"{section}.{name}", value, expected or "")


def require(condition: bool, key: str, received: Any, expected: str) -> None:
    """Raise the ConfigError of a setting unless the condition holds."""
    if not condition:
        raise _unusable(key, received, expected)


@functools.cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Types of a dataclass's fields, with their bounds."""
    return typing.get_type_hints(cls, include_extras=True)


def from_dict(cls: type, tree: Any, prefix: str = "") -> Any:
    """Build a config dataclass from nested mappings.

    Raises
    ------
    ConfigError
        For an unknown key (the valid ones are listed), a value of the wrong type or out of its bounds.
    """
    if not isinstance(tree, Mapping):
        received = f"{prefix.rstrip('.') or 'the file'}={_shown(tree)}"
        raise ConfigError(received, "a mapping of keys to values", "Indent its keys below it.")
    hints = hints_of(cls)
    for key in tree:
        if key not in hints:
            raise _unknown(str(key)[:_SHOWN], list(hints), prefix)
    values = {key: _coerce(hints[key], value, f"{prefix}{key}") for key, value in tree.items()}
    return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict (tuples become lists) that YAML, JSON and :func:`from_dict` take."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def flatten(config: Any) -> dict[str, Any]:
    """Dotted keys to leaf values, as MLflow parameters want them."""

    def walk(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in tree.items():
            flat |= walk(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return flat

    return walk(to_dict(config), "")


def _unusable(key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{key}={_shown(value)}", expected, f"Change {key} in the YAML file or by {key}=VALUE.")


def _unknown(key: str, known: list[str], prefix: str) -> ConfigError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {prefix}{close[0]}?" if close else "Remove it."
    valid = ", ".join(f"{prefix}{name}" for name in known)
    return ConfigError(f"unknown key {prefix}{key}", f"one of {valid}", hint)


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """Value as the annotated type; ints pass for floats, lists for tuples, one text for a tuple of one."""
    for bound in typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ():
        if isinstance(bound, Items) and isinstance(value, list | tuple) and len(value) > bound.most:
            raise _unusable(key, value[: bound.most], str(bound))  # before a million items are looked at
    hint = _bare(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _coerce(arguments[0], value, key)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            return tuple(_coerce(arguments[0], item, f"{key}[]") for item in value)
        if _bare(arguments[0]) is str and arguments[-1] is Ellipsis and isinstance(value, str):
            return (value,)
    elif hint is float:
        number = _as_float(value)
        if number is not None:
            return number
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = " or ".join(map(repr, arguments)) if origin is Literal else str(getattr(hint, "__name__", hint))
    raise _unusable(key, value, "a finite number (float)" if hint is float else name)


def _as_float(value: Any) -> float | None:
    """A finite number, also from text, as YAML 1.1 reads 2e-3 as one; None of anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _expected(hint: Any, value: Any) -> str | None:
    """What the bounds of a type want instead of a value; None where it lies in them."""
    if typing.get_origin(hint) is Annotated:
        inner, *bounds = typing.get_args(hint)
        amiss = [str(bound) for bound in bounds if not bound.holds(value)]
        return amiss[0] if amiss else _expected(inner, value)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return None if value is None else _expected(typing.get_args(hint)[0], value)
    if typing.get_origin(hint) is tuple:
        found = (_expected(typing.get_args(hint)[0], item) for item in value)
        return next((f"{expected} for each item" for expected in found if expected), None)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, str) and not _is_plain(value):
        return f"text without control characters, of at most {LONGEST_TEXT} characters"
    return None


def _bare(hint: Any) -> Any:
    """A type without its bounds."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _is_plain(text: str) -> bool:
    return len(text) <= LONGEST_TEXT and not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in text)


def _shown(value: Any) -> str:
    """A value as it stands in an error: never long, and of an enormous int only what it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of an int with more than 4,300 digits; of what is nested deeply
        return f"a huge {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
