"""Did you mean: the nearest valid word to a mistyped one, for commands and options of the command line."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable

_QUOTED = re.compile(r"invalid choice: '(?P<word>[^']*)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (?P<words>.*)", re.DOTALL)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The valid word that is most like another; None if none is much alike."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return close[0] if close else None


def with_suggestion(parser: argparse.ArgumentParser, message: str) -> str:
    """What argparse complains of, followed by the command, value or option that was probably meant.

    Parameters
    ----------
    parser:
        The parser that complains.
    message:
        Its complaint.
    """
    mistyped = _mistyped(message)
    valid = _valid_words(parser)
    for word in mistyped:
        meant = nearest(word, valid)
        if meant is not None and meant != word:
            return f"{message}\nDid you mean {meant}?"
    return message


def _mistyped(message: str) -> list[str]:
    """The words that a complaint is about: a value that is no choice, or options that there are not."""
    choice = _QUOTED.search(message)
    if choice is not None:
        return [choice["word"]]
    unrecognized = _UNRECOGNIZED.search(message)
    if unrecognized is None:
        return []
    words = unrecognized["words"].split()
    return [word.partition("=")[0] for word in words if word.startswith("-")]


def _valid_words(parser: argparse.ArgumentParser) -> list[str]:
    """Options, commands and choices of a parser."""
    words: list[str] = []
    for action in parser._actions:
        words.extend(action.option_strings)
        words.extend(map(str, action.choices or ()))
    return words
