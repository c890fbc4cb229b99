"""Cleans untrusted text and numbers, and lists names in messages of limited length."""

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

MOST_LISTED = 5
"""Most names in a message."""

MOST_CHARACTERS = 200
"""Most characters of a value, such as a site's name."""

_NOTHING = frozenset(("", "n/a", "na", "nan", "none", "null", "<na>", "#n/a"))


def text_of(value: Any) -> str | None:
    """A value as one line of composed Unicode (NFC) without surrounding space; None if it is unusable.

    Unusable are values that are neither text nor number, codes for a missing value, lone surrogates, and texts longer
    than :data:`MOST_CHARACTERS`.
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
    """The text in NFC, with control characters and line breaks as spaces; empty if it is not valid Unicode."""
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
    if isinstance(value, str) and ("_" in value or not value.isascii()):  # Python would read 1_0 as 10
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number <= most else None


def printable(text: str | Path) -> str:
    """A name in UTF-8, with other bytes shown as `\\xff`, so that different names stay different."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def listed(names: Sequence[str]) -> str:
    """The first names, each of limited length, and the number of further ones."""
    shown = ", ".join(_shortened(printable(name)) for name in names[:MOST_LISTED])
    if len(names) <= MOST_LISTED:
        return shown
    return f"{shown} and {len(names) - MOST_LISTED} more"


def _shortened(name: str) -> str:
    """A name as one line of limited length: it may contain line breaks and thousands of characters."""
    most = 2 * MOST_CHARACTERS
    if len(name) > most:
        name = f"{name[:most]}..."
    if name.isprintable():
        return name
    letters = [letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name]
    return "".join(letters)


def warn_of(names: Sequence[str], what: str) -> None:
    """Log one warning for any number of names."""
    if names:
        log.warning("%d x %s: %s", len(names), what, listed(names))


class Findings:
    """Collects warnings by kind, to be logged after the whole archive has been read."""

    def __init__(self) -> None:
        self._names: defaultdict[str, list[str]] = defaultdict(list)

    def note(self, what: str, names: str | Iterable[str]) -> None:
        """Add one or several names to a kind."""
        more = [names] if isinstance(names, str) else list(names)
        if more:
            self._names[what] += more

    def warn(self) -> None:
        """Log one warning for each kind."""
        for what, names in self._names.items():
            warn_of(names, what)
