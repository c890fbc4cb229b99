"""Reads an archive's tables of subjects, sessions and files; unclear values count as missing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mmh_ray.bids.text import listed, printable, text_of
from mmh_ray.bids.tsv import REMEDY, Line, check_key, is_half_quoted, read_tsv, unquoted
from mmh_ray.errors import DataError

COLUMNS = ("site", "site_id", "age", "sex", "manufacturer", "field_strength_t")
"""Columns that are read, in lower case. `site_id` counts as `site` if that is empty in all rows."""

PREFIXES = {"participant_id": "sub-", "session_id": "ses-", "filename": ""}
"""Prefix of each key's values; tables may leave it out."""

MOST_ROWS = 2_000_000
MOST_DAMAGED = 10_000
"""Limits for the rows of a table; a file with more is not considered a table of an archive."""

_MISSING = "n/a"
_MOST_KEPT = 10
"""Most contradicting rows with the same key that are kept."""

_IS_CELL = re.compile(r"$|sub-|ses-|\d|.*/")
"""Matches cells that are values rather than names of columns."""
_NO_PREFIX = re.compile(r"^((sub|ses)[-_ ]*)+")
_NO_LETTER = re.compile(r"[\W_]")


class Table:
    """Rows of a table by key: a subject, a session or a file. Methods call the key ``about``.

    Attributes
    ----------
    name:
        Path relative to the archive, for messages.
    columns:
        Names of all columns in lower case.
    has_sites:
        Whether any row has a site; then every row should have one.
    has_key:
        Whether it has a key column. A table without one is useless, but harmless if it has no site column either.
    damaged:
        Key to problem, for rows that cannot be used.
    """

    def __init__(self, name: str, columns: list[str]) -> None:
        self.name = name
        self.columns = columns
        self.has_sites = False
        self.has_key = True
        self.damaged: dict[str, str] = {}
        self._read = _columns_read(columns)
        self._rows: dict[str, tuple[str, ...]] = {}  # cells of the columns that are read, unchanged
        self._others: dict[str, list[tuple[str, ...]]] = {}  # further rows with the same key but other values
        self._spelt: dict[str, str] = {}  # key to its spelling in the table, if that lacks the prefix
        self._site_column = "site"
        self._similar: defaultdict[str, list[str]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, about: str) -> bool:
        return about in self._rows or about in self.damaged

    def values(self, about: str) -> dict[str, str]:
        """Values by column, without empty and contradicting ones; empty for a damaged row."""
        if about in self.damaged:
            return {}
        values = {}
        for column, texts in self._texts_of(about).items():
            if len(texts) == 1 and texts[0]:
                values[column] = texts[0]
        return values

    def leaves_site_empty(self, about: str) -> bool:
        """Whether a good row has an empty cell, so that a less specific table may give the site."""
        return about not in self.damaged and self._texts_of(about).get("site") == [""]

    def why_no_site(self, about: str) -> str:
        """Why the table gives no site for this key although it has sites."""
        if about in self.damaged:
            return self.damaged[about]
        if about not in self._rows:
            return f"{self.name} has no row for {about}{self.but_for(about)}"
        sites = self._texts_of(about)["site"]
        if len(sites) > 1:
            return f"{self.name} gives {about} more than one site: {listed(_shown(sites))}"
        return f"{self.name} gives {about} no site"

    def but_for(self, about: str) -> str:
        """Similar keys, as the end of a sentence; empty if there are none. They are only named, never used."""
        if self._similar is None:
            self._similar = defaultdict(list)
            for known in self._rows:
                self._similar[_bare(known)].append(self._spelt.get(known, known))
        similar = self._similar.get(_bare(about), [])
        return f", but for {listed(similar)}, which may be meant" if similar else ""

    def contradictions(self) -> list[str]:
        """Keys with different values in several rows, and these values."""
        names = [column for _, column in self._read]
        has_columns_twice = len(set(names)) < len(names)
        candidates = self._rows if has_columns_twice else self._others
        contradictions = []
        for about in candidates:
            differing = []
            for column, texts in self._texts_of(about).items():
                if len(texts) > 1:
                    differing.append(f"{column}: {listed(_shown(texts))}")
            if differing:
                contradictions.append(f"{about} ({'; '.join(differing)})")
        return contradictions

    def add(self, about: str, spelt: str, cells: list[str]) -> None:
        """Add the cells of a row; of several rows with the same key, only equal values count."""
        if spelt != about:
            self._spelt[about] = spelt
        read = tuple([cells[at] for at, _ in self._read])
        if self._rows.setdefault(about, read) != read:
            others = self._others.setdefault(about, [])
            if len(others) < _MOST_KEPT:
                others.append(read)

    def choose_site_column(self) -> None:
        """Use `site_id` if no row has a `site`; a mixture of both could give one site two names."""
        if "site_id" in self.columns and not self._has_values("site"):
            self._site_column = "site_id"
        if self._site_column not in self.columns:
            self.has_sites = False
            return
        # A damaged row may have had a site.
        self.has_sites = bool(self.damaged) or self._has_values(self._site_column)

    def _has_values(self, name: str) -> bool:
        """Whether any row has a value in a column of this name."""
        places = [place for place, (_, column) in enumerate(self._read) if column == name]
        return any(_text(row[place]) for row in self._all_rows() for place in places)

    def _all_rows(self) -> Iterator[tuple[str, ...]]:
        yield from self._rows.values()
        for others in self._others.values():
            yield from others

    def _texts_of(self, about: str) -> dict[str, list[str]]:
        """Different texts of each column, over all rows with this key and all columns of the same name."""
        texts_of: dict[str, list[str]] = {}
        if about not in self._rows:
            return texts_of
        for row in (self._rows[about], *self._others.get(about, ())):
            for (_, column), cell in zip(self._read, row, strict=True):
                if column in ("site", "site_id"):
                    if column != self._site_column:
                        continue
                    column = "site"
                text = _text(cell)
                texts = texts_of.setdefault(column, [])
                if text not in texts:
                    texts.append(text)
        return texts_of


def _columns_read(header: list[str]) -> list[tuple[int, str]]:
    """Position and name of the columns that are read."""
    return [(at, column) for at, column in enumerate(header) if column in COLUMNS]


def _text(cell: str) -> str:
    return text_of(unquoted(cell)) or ""


def _shown(texts: list[str]) -> list[str]:
    return [text or _MISSING for text in texts]


def _bare(about: str) -> str:
    """A key without folders, prefix, punctuation, case, endings and leading zeros, to find similar keys."""
    name = about.replace("\\", "/").rpartition("/")[2].casefold().partition(".")[0]
    return _NO_LETTER.sub("", _NO_PREFIX.sub("", name)).lstrip("0")


def read_table(path: Path, key: str, root: Path) -> Table:
    """Rows of a TSV by its column ``key``: `participant_id`, `session_id` or `filename`.

    A row is damaged if it has more or fewer cells than the header, or seems to continue in the next line. Of several
    rows with the same key, only equal values count.

    Raises
    ------
    DataError
        As :func:`~mmh_ray.bids.tsv.read_tsv`. Also if a table with sites has no column ``key`` or no rows, if most rows
        are damaged, or if there are too many rows.
    """
    name = printable(path.relative_to(root))
    header, lines = read_tsv(path, root, name)
    table = Table(name, header)
    if key not in header and _is_dispensable(header, key):
        table.has_key = False
        return table
    check_key(header, key, name)
    key_at = header.index(key)
    columns = _columns_read(header)
    previous: tuple[str, str, str] | None = None  # of the last good row: key, its spelling, last cell
    damaged_lines = 0
    damaged_rows = 0  # damaged lines that begin with an id, so that they are not part of another row
    for count, line in enumerate(lines, 1):
        spelt = _id_of(line, key_at)
        about = PREFIXES[key] + spelt.removeprefix(PREFIXES[key])
        problem = _problem(line, len(header), columns, name)
        if problem is None:
            table.add(about, spelt, line.cells)
            previous = about, spelt, line.cells[-1]
        else:
            damaged_lines += 1
            damaged_rows += _is_id(spelt, key)
            table.damaged[about] = problem
            if previous is not None and _goes_on(previous[1], previous[2], spelt, key):
                table.damaged[previous[0]] = f"{problem}, where {previous[0]} seems to continue"
            previous = None  # further damaged lines belong to this one
        if damaged_lines > MOST_DAMAGED:
            raise DataError(f"{name}: more than {MOST_DAMAGED} damaged rows ({problem})", "rows that fit", REMEDY)
        if count > MOST_ROWS:
            raise DataError(f"{name}: more than {MOST_ROWS} rows", "a table of an archive", REMEDY)
    table.choose_site_column()
    _check_rows(table, damaged_rows)
    return table


def _is_dispensable(header: list[str], key: str) -> bool:
    """Whether a table without a key column can be ignored because it has no sites, such as tables older than BIDS.

    Its first line must clearly be a header. A table of participants is never ignored.
    """
    is_header = not any(_IS_CELL.match(name) for name in header)
    has_sites = "site" in header or "site_id" in header
    return key != "participant_id" and len(header) > 1 and is_header and not has_sites


def _is_id(text: str, key: str) -> bool:
    """Whether a text is a complete id of a subject or session, or a path of a file."""
    prefix = PREFIXES[key]
    return text.startswith(prefix) if prefix else "/" in text


def _id_of(line: Line, at: int) -> str:
    cell = line.cells[at] if at < len(line.cells) else line.cells[0]
    return unquoted(cell).removeprefix("./")


def _problem(line: Line, width: int, columns: list[tuple[int, str]], name: str) -> str | None:
    """Why a line is damaged; None if it is good."""
    place = f"{name}, line {line.number}"
    count = len(line.cells)
    if count > width:
        return f"{place}: more cells than the {width} of the header"
    if count < width:
        cells = "1 cell" if count == 1 else f"{count} cells"
        return f"{place}: {cells} where the header has {width}"
    for at, column in columns:
        if is_half_quoted(line.cells[at]):
            return f"{place}: half a quote in column {column}"
    return None


def _goes_on(spelt: str, last_cell: str, next_spelt: str, key: str) -> bool:
    """Whether a damaged line may be the rest of the row before it, whose last cell has a line break."""
    is_open = last_cell.strip().startswith('"') and is_half_quoted(last_cell)
    return is_open or (_is_id(spelt, key) and not _is_id(next_spelt, key))


def _check_rows(table: Table, damaged_rows: int) -> None:
    """Raise DataError if most rows do not fit the header, or if a table with sites has no rows."""
    is_none_good = bool(table.damaged) and len(table) == 0
    if is_none_good or damaged_rows > len(table):
        first_problem = next(iter(table.damaged.values()))
        received = f"{table.name}: most rows do not fit the header ({first_problem})"
        raise DataError(received, "a cell for every column", REMEDY)
    is_for_sites = "site" in table.columns or "site_id" in table.columns
    if is_for_sites and len(table) == 0:
        raise DataError(f"{table.name}: a header without rows", "a row for each", "Add the rows or remove the table.")
