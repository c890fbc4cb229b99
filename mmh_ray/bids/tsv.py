"""Reads lines and cells of tab-separated tables as BIDS defines them, and reports files that are not such tables."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mmh_ray.bids.folders import FETCH, check_file
from mmh_ray.bids.text import listed
from mmh_ray.errors import DataError
from mmh_ray.files import read_bytes

REMEDY = "Save it as tab-separated text in UTF-8, one line a row and a cell for every column."
_FETCH_TABLE = "Fetch its content (datalad get {name}), restore it, or remove it."
_SEPARATORS = {",": "commas", ";": "semicolons", "|": "bars", " ": "spaces"}
_POINTER = re.compile(rb"(\.\.[/\\])*(\.git[/\\]annex|/annex)[/\\]objects[/\\]|version https://git-lfs\.github\.com/")
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
_ENDINGS = (".tsv", ".csv", ".txt", ".xlsx", ".xls", ".ods", ".tsv.gz", ".csv.gz")

MOST_COLUMNS = 2**20


class Line(NamedTuple):
    """A line that is not empty: its number in the file, and its cells; the last cell has all surplus ones."""

    number: int
    cells: list[str]


def read_tsv(path: Path, root: Path, name: str) -> tuple[list[str], Iterator[Line]]:
    """Names of the columns in lower case, and the lines below them, with any number of cells.

    Only tabs separate cells; a quote does not join several cells. Empty cells after the last column and empty lines are
    left out.

    Parameters
    ----------
    name:
        Name of the file in errors.

    Raises
    ------
    DataError
        If it is not a regular file of the archive, cannot be read, or is not text in UTF-8.
    """
    lines = _lines(_text(path, root, name))
    _, first = next(lines, (0, None))
    if first is None:
        raise DataError(f"{name}: empty", "a readable table", _FETCH_TABLE.format(name=name))
    if first.count("\t") >= MOST_COLUMNS:
        raise DataError(f"{name}: more than {MOST_COLUMNS} columns", "a table of an archive", REMEDY)
    header = [unquoted(text).lower() for text in first.split("\t")]
    while len(header) > 1 and not header[-1]:
        header.pop()
    width = len(header)
    return header, (Line(number, _cells(line, width)) for number, line in lines)


def unquoted(cell: str) -> str:
    """A cell without surrounding space, and without quotes that enclose all of it."""
    cell = cell.strip()
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"':
        return cell
    inner = cell[1:-1]
    if '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"').strip()


def is_half_quoted(cell: str) -> bool:
    """Whether a cell has an unpaired quote."""
    return cell.count('"') % 2 == 1


def misnamed(names: Iterable[str], file_name: str) -> str | None:
    """A table that is probably meant to be ``file_name``, if that is missing; None if there is none.

    >>> misnamed(["README.txt", "Participants.csv"], "participants.tsv")
    'Participants.csv'
    """
    names = sorted(names)
    if file_name in names:
        return None
    about = file_name.removesuffix(".tsv").rpartition("_")[2]
    for name in names:
        stem, dot, ending = name.casefold().partition(".")
        if dot + ending in _ENDINGS and stem.rpartition("_")[2] == about:
            return name
    return None


def _text(path: Path, root: Path, name: str) -> str:
    fetch = _FETCH_TABLE.format(name=name)
    try:
        check_file(path, root, name)
        content = read_bytes(path)
    except DataError as error:
        remedy = fetch if error.remedy == FETCH else error.remedy
        raise DataError(error.received, "a readable table", remedy) from error
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}", "a readable table", fetch) from error
    if _POINTER.match(content):
        raise DataError(f"{name}: only a pointer to its content", "a readable table", fetch)
    if content.startswith(_BYTE_ORDER_MARKS) or b"\0" in content:
        raise DataError(f"{name}: UTF-16 or binary", "a readable table", REMEDY)
    try:
        return content.decode("utf-8-sig")
    except ValueError as error:
        raise DataError(f"{name}: {error}", "a readable table", REMEDY) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1."""
    # Only \n, \r and \r\n end a line; splitlines() would also break a cell at a form feed.
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.isspace():
            yield number, line.removesuffix("\n")


def _cells(line: str, width: int) -> list[str]:
    cells = line.split("\t", width)
    if len(cells) > width and not cells[-1].strip():
        cells.pop()
    return cells


def check_key(header: list[str], key: str, name: str) -> None:
    """Raise DataError unless there is exactly one column of this name."""
    if header.count(key) == 1:
        return
    if key in header:
        raise DataError(f"{name}: {header.count(key)} columns {key}", "one", "Remove the others.")
    for separator, plural in _SEPARATORS.items():
        parts = [unquoted(part) for part in header[0].split(separator)]
        if len(parts) > 1 and key in parts:
            raise DataError(f"{name}: cells separated by {plural}", "tabs between them", REMEDY)
    raise DataError(f"{name}: columns {listed(header)}", f"a column {key}", REMEDY)
