"""Makes the errors for refused settings: the dotted key, what was received, what is expected, what to do."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len, MultipleOf
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mmh_ray.errors import ConfigError

MOST_SHOWN = 200
"""Most characters of a value or key in an error."""

_UNKNOWN_KEY = ("unexpected_keyword_argument", "unexpected_positional_argument", "invalid_key")


def require(condition: bool, key: str, received: Any, expected: str) -> None:
    """Raise a ConfigError for a setting unless the condition is true."""
    if not condition:
        remedy = f"Change {key} in the YAML file or by {key}=VALUE."
        raise ConfigError(f"{key}={shown(received)}", expected, remedy)


def shown(value: Any) -> str:
    """A value for an error, as text of limited length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int with more than 4,300 digits; a deeply nested value
        return f"a huge {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def config_error(section: type, error: ValidationError) -> ConfigError:
    """The first of pydantic's errors about a section in our words; an unknown key comes before a bad value."""
    section_name = section.__name__.removesuffix("Config").lower()
    prefix = f"{section_name}." if section_name else ""
    hints = typing.get_type_hints(section, include_extras=True)
    complaints = error.errors(include_url=False)
    for complaint in complaints:
        if complaint["type"] in _UNKNOWN_KEY:
            return _unknown_key(str(complaint["loc"][0])[:MOST_SHOWN], list(hints), prefix)

    complaint = complaints[0]
    received = shown(complaint["input"])
    if not complaint["loc"]:
        name = section_name or "the file"
        return ConfigError(f"{name}={received}", "a mapping of keys to values", "Indent its keys below it.")
    field, *item = complaint["loc"]
    if isinstance(field, int):  # a positional argument in code
        field = list(hints)[field]
    if complaint["type"] == "missing":  # a missing item: the input is the whole list
        item = []
    expected = expectation(hints[field], len(item))
    if complaint["type"] == "value_error":  # raised by one of our validators, with our text
        expected = str(complaint["ctx"]["error"])
    key = f"{prefix}{field}"
    place = "".join(f"[{index}]" for index in item)
    return ConfigError(f"{key}{place}={received}", expected, f"Change {key} in the YAML file or by {key}=VALUE.")


def _unknown_key(key: str, known: Sequence[str], prefix: str) -> ConfigError:
    remedy = "Remove it."
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        remedy = f"Did you mean {prefix}{close[0]}?"
    dotted_keys = [f"{prefix}{name}" for name in known]
    valid = ", ".join(dotted_keys)
    return ConfigError(f"unknown key {prefix}{key}", f"one of {valid}", remedy)


def expectation(hint: Any, depth: int = 0) -> str:
    """What a field of this type accepts, in words; with a depth of 1, what an item of the field may be."""
    constraints: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        constraints = hint.__metadata__
        hint = hint.__origin__
    kind = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        return expectation(arguments[0], depth)
    if kind is Literal:
        return " or ".join(map(repr, arguments))
    if kind is tuple and depth:
        return expectation(arguments[0], depth - 1)
    if kind is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} items"
    if hint is bool:
        return "true or false"
    words = list(_in_words(constraints))
    if hint is int:
        words.append("a whole number")
    if hint is float and not words:
        words.append("a finite number")
    return ", ".join(words)


def _in_words(constraints: Sequence[Any]) -> Iterator[str]:
    for constraint in constraints:
        if isinstance(constraint, Interval):
            low = f"{constraint.ge:.12g}" if constraint.ge is not None else f"above {constraint.gt:.12g}"
            high = f"{constraint.le:.12g}" if constraint.le is not None else f"below {constraint.lt:.12g}"
            yield f"{low} to {high}"
        elif isinstance(constraint, MultipleOf):
            yield f"a multiple of {constraint.multiple_of}"
        elif isinstance(constraint, Len):
            yield f"a list of {constraint.min_length} to {constraint.max_length} items"
        elif isinstance(constraint, FieldInfo) and constraint.description:
            yield constraint.description
