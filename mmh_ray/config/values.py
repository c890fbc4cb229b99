"""Defines the types of settings with their bounds.

Every number has generous bounds, outside which a value can only be a mistake or an attack. Every text has a pattern,
and a description of it for errors.
"""

from __future__ import annotations

from collections.abc import Hashable
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar

from annotated_types import Interval
from pydantic import AfterValidator, BeforeValidator, FailFast, Field, Strict

LONGEST_TEXT = 4096
"""Most characters of a text."""
MOST_ITEMS = 10_000
"""Most items of a list."""

Item = TypeVar("Item")


def _as_whole(value: Any) -> Any:
    """NumPy integers as Python integers."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return value


def _as_number(value: Any) -> Any:
    """Any real number as a float; text as well, because YAML 1.1 reads 2e-3 as text."""
    if not isinstance(value, Real | str) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):  # text that is not a number; an int that is too large for a float
        return value


def _without_control_characters(text: str) -> str:
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in text):
        raise ValueError(f"text without control characters, of at most {LONGEST_TEXT} characters")
    return text


def _as_items(value: Any) -> Any:
    """A single text as a tuple of one."""
    return (value,) if isinstance(value, str) else value


def _each_once(items: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    if len(set(items)) < len(items):
        raise ValueError("each item once")
    return items


Whole = Annotated[int, Strict(), BeforeValidator(_as_whole)]
Number = Annotated[float, Strict(), BeforeValidator(_as_number)]
Text = Annotated[str, Field(strict=True, max_length=LONGEST_TEXT), AfterValidator(_without_control_characters)]
Several = Annotated[tuple[Item, ...], Field(max_length=MOST_ITEMS), FailFast(), BeforeValidator(_as_items)]
"""A list. Reading stops at the first bad or surplus item, so that a list of a million bad items takes no time."""
EachOnce = AfterValidator(_each_once)

Count = Annotated[Whole, Interval(ge=1, le=10**7)]
"""A number of things, at least one."""
CountOrNone = Annotated[Whole, Interval(ge=0, le=10**7)]
Share = Annotated[Number, Interval(ge=0, le=1)]
Weight = Annotated[Number, Interval(ge=0, le=10**6)]
"""Weight of a loss."""
Rate = Annotated[Number, Interval(ge=1e-12, le=10)]
"""A learning rate."""
Seed = Annotated[Whole, Interval(ge=0, le=2**31 - 1)]
"""A seed in the range that every library accepts."""

Named = Annotated[Text, Field(pattern=r"^.{1,500}$", description="a text of 1 to 500 characters")]
Place = Annotated[Text, Field(pattern=r"^.+$", description=f"a text of 1 to {LONGEST_TEXT} characters")]
"""Path, URI or name."""
