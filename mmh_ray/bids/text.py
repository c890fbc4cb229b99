"""What strangers wrote, as text and numbers that can be trusted, and names in messages of bounded length."""

from __future__ import annotations

import logging
import math
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

NAMED = 5
"""Names in a message that stands for many."""

MOST_CHARACTERS = 200
"""Of a value, such as a site's name, or of a name in a message."""

_NOTHING = frozenset(("", "n/a", "na", "nan", "none", "null", "<na>", "#n/a"))


def text_of(value: Any) -> str | None:
    """A value as one line of composed Unicode without surrounding space; None for what says nothing.

    That is another type than text or a number, what tables write for a missing value, a lone surrogate, and what is
    longer than :data:`MOST_CHARACTERS`.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        text = str(value).strip()
    except ValueError:  # an integer of more digits than Python turns into text
        return None
    if not (text.isascii() and text.isprintable()):
        text = _composed(text)
    if len(text) > MOST_CHARACTERS or text.lower() in _NOTHING:
        return None
    return text


def _composed(text: str) -> str:
    """The same letters in one form, control characters and line breaks as spaces; nothing where it is no Unicode."""
    if len(text) > 10 * MOST_CHARACTERS:
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return ""
    spaced = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    one_line = " ".join(spaced.split())
    return unicodedata.normalize("NFC", one_line)


def number_of(value: Any, most: float) -> float | None:
    """A decimal number from 0 to ``most``; None for everything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and ("_" in value or not value.isascii()):  # Python would take 1_0 for 10
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number <= most else None


def printable(text: str | Path) -> str:
    """Bytes of a name that are not UTF-8 as `\\xff`, so that different names stay different."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def listed(names: Sequence[str]) -> str:
    """The first names, each of bounded length, and how many more there are."""
    shown = ", ".join(_shortened(printable(name)) for name in names[:NAMED])
    if len(names) <= NAMED:
        return shown
    return f"{shown} and {len(names) - NAMED} more"


def _shortened(name: str) -> str:
    """What fits into one line: a name may hold line breaks and thousands of letters."""
    most = 2 * MOST_CHARACTERS
    if len(name) > most:
        name = f"{name[:most]}..."
    if name.isprintable():
        return name
    letters = [letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name]
    return "".join(letters)


def warn_of(names: Sequence[str], what: str) -> None:
    """One line, whatever the number."""
    if names:
        log.warning("%d x %s: %s", len(names), what, listed(names))


class Findings:
    """What is warned of once all of an archive was seen, gathered by its kind."""

    def __init__(self) -> None:
        self._names: defaultdict[str, list[str]] = defaultdict(list)

    def note(self, what: str, names: str | Iterable[str]) -> None:
        """Add a name, or several, to those of a kind."""
        more = [names] if isinstance(names, str) else list(names)
        if more:
            self._names[what] += more

    def warn(self) -> None:
        """A line for each kind."""
        for what, names in self._names.items():
            warn_of(names, what)
