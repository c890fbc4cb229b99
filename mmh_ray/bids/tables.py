"""What the tables of an archive say of subjects, sessions and files: what one does not say clearly, it does not say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mmh_ray.bids.text import listed, printable, text_of
from mmh_ray.bids.tsv import REMEDY, Line, check_key, is_half_quoted, read_tsv, unquoted
from mmh_ray.errors import DataError

COLUMNS = ("site", "site_id", "age", "sex", "manufacturer", "field_strength_t")
"""What is read of a table, by its columns' names in lower case. `site_id` counts as `site` where that is empty."""

PREFIXES = {"participant_id": "sub-", "session_id": "ses-", "filename": ""}
"""What each key begins with; in the tables it may be left out."""

MOST_ROWS = 2_000_000
MOST_DAMAGED = 10_000
"""Rows beyond which a table is no longer taken for one of an archive."""

_MISSING = "n/a"
_MOST_TOLD = 10
"""Different rows about the same that are kept."""

_IS_CELL = re.compile(r"$|sub-|ses-|\d|.*/")
"""What begins a cell of a row rather than the name of a column."""
_NO_PREFIX = re.compile(r"^((sub|ses)[-_ ]*)+")
_NO_LETTER = re.compile(r"[\W_]")


class Table:
    """Rows of a table by what they are about: a subject, a session or a file.

    Attributes
    ----------
    name:
        Path relative to the archive, for messages.
    columns:
        Names of all its columns in lower case.
    has_sites:
        Whether it gives a site to anyone. Then it should give one to everyone.
    has_key:
        Whether it says what its rows are about. One that does not, and has no column for sites, is of no use, but no site
        is lost with it.
    damaged:
        What is wrong with rows that cannot be used, by what they are about.
    """

    def __init__(self, name: str, columns: list[str]) -> None:
        self.name = name
        self.columns = columns
        self.has_sites = False
        self.has_key = True
        self.damaged: dict[str, str] = {}
        self._read = _columns_read(columns)
        self._rows: dict[str, tuple[str, ...]] = {}  # cells of the columns that are read, as they are in the file
        self._others: dict[str, list[tuple[str, ...]]] = {}  # further rows about the same that differ
        self._spelt: dict[str, str] = {}  # ids as the table spells them, where that is not in full
        self._site_column = "site"
        self._similar: defaultdict[str, list[str]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, about: str) -> bool:
        return about in self._rows or about in self.damaged

    def values(self, about: str) -> dict[str, str]:
        """What the table says, without what it leaves empty, says in two ways, or says in a damaged row."""
        if about in self.damaged:
            return {}
        values = {}
        for column, texts in self._said(about).items():
            if len(texts) == 1 and texts[0]:
                values[column] = texts[0]
        return values

    def leaves_site_empty(self, about: str) -> bool:
        """Whether there is a good row with an empty cell, so that a less specific table may tell the site."""
        return about not in self.damaged and self._said(about).get("site") == [""]

    def why_no_site(self, about: str) -> str:
        """Why the table gives no site here although it has sites."""
        if about in self.damaged:
            return self.damaged[about]
        if about not in self._rows:
            return f"{self.name} has no row for {about}{self.but_for(about)}"
        sites = self._said(about)["site"]
        if len(sites) > 1:
            return f"{self.name} gives {about} more than one site: {listed(_shown(sites))}"
        return f"{self.name} gives {about} no site"

    def but_for(self, about: str) -> str:
        """Ids that may be meant, as the end of a sentence; nothing where there is none. They are never taken for it."""
        if self._similar is None:
            self._similar = defaultdict(list)
            for known in self._rows:
                self._similar[_bare(known)].append(self._spelt.get(known, known))
        meant = self._similar.get(_bare(about), [])
        return f", but for {listed(meant)}, which may be meant" if meant else ""

    def contradictions(self) -> list[str]:
        """What is given more than once and differs, and in what."""
        names = [column for _, column in self._read]
        has_columns_twice = len(set(names)) < len(names)
        candidates = self._rows if has_columns_twice else self._others
        contradictions = []
        for about in candidates:
            differing = []
            for column, texts in self._said(about).items():
                if len(texts) > 1:
                    differing.append(f"{column}: {listed(_shown(texts))}")
            if differing:
                contradictions.append(f"{about} ({'; '.join(differing)})")
        return contradictions

    def add(self, about: str, spelt: str, cells: list[str]) -> None:
        """Add the cells of a row; of rows about the same only what they agree in counts."""
        if spelt != about:
            self._spelt[about] = spelt
        read = tuple([cells[at] for at, _ in self._read])
        if self._rows.setdefault(about, read) != read:
            others = self._others.setdefault(about, [])
            if len(others) < _MOST_TOLD:
                others.append(read)

    def choose_site_column(self) -> None:
        """Let `site_id` be the site where no row has a `site`: a mixture of both would name one site in two ways."""
        if "site_id" in self.columns and not self._says("site"):
            self._site_column = "site_id"
        if self._site_column not in self.columns:
            self.has_sites = False
            return
        # A damaged row may have held a site.
        self.has_sites = bool(self.damaged) or self._says(self._site_column)

    def _says(self, name: str) -> bool:
        """Whether any row has something in a column of this name."""
        places = [place for place, (_, column) in enumerate(self._read) if column == name]
        return any(_text(row[place]) for row in self._all_rows() for place in places)

    def _all_rows(self) -> Iterator[tuple[str, ...]]:
        yield from self._rows.values()
        for others in self._others.values():
            yield from others

    def _said(self, about: str) -> dict[str, list[str]]:
        """Different texts of each column, over all rows about this and all columns of one name."""
        said: dict[str, list[str]] = {}
        if about not in self._rows:
            return said
        for row in (self._rows[about], *self._others.get(about, ())):
            for (_, column), cell in zip(self._read, row, strict=True):
                if column in ("site", "site_id"):
                    if column != self._site_column:
                        continue
                    column = "site"
                text = _text(cell)
                texts = said.setdefault(column, [])
                if text not in texts:
                    texts.append(text)
        return said


def _columns_read(header: list[str]) -> list[tuple[int, str]]:
    """Position and name of the columns that are read."""
    return [(at, column) for at, column in enumerate(header) if column in COLUMNS]


def _text(cell: str) -> str:
    return text_of(unquoted(cell)) or ""


def _shown(texts: list[str]) -> list[str]:
    return [text or _MISSING for text in texts]


def _bare(about: str) -> str:
    """What is left of an id or a file name without folders, prefix, signs, case and leading zeros."""
    name = about.replace("\\", "/").rpartition("/")[2].casefold().partition(".")[0]
    return _NO_LETTER.sub("", _NO_PREFIX.sub("", name)).lstrip("0")


def read_table(path: Path, key: str, root: Path) -> Table:
    """Rows of a TSV by its column ``key``: `participant_id`, `session_id` or `filename`.

    A row with more or fewer cells than the header cannot be used, nor one that seems to go on in the next line. Of rows
    about the same only what they agree in counts.

    Raises
    ------
    DataError
        As :func:`~mmh_ray.bids.tsv.read_tsv`; where a table with sites has no column ``key``, or no row; where most rows
        cannot be used, or there are too many.
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
    previous: tuple[str, str, str] | None = None  # about what the last good row is, its id, its last cell
    damaged_lines = 0
    damaged_rows = 0  # those that begin with an id: no part of another
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
                table.damaged[previous[0]] = f"{problem}, where {previous[0]} seems to go on"
            previous = None  # whatever else follows belongs to the damaged one
        if damaged_lines > MOST_DAMAGED:
            raise DataError(f"{name}: more than {MOST_DAMAGED} damaged rows ({problem})", "rows that fit", REMEDY)
        if count > MOST_ROWS:
            raise DataError(f"{name}: more than {MOST_ROWS} rows", "a table of an archive", REMEDY)
    table.choose_site_column()
    _check_rows(table, damaged_rows)
    return table


def _is_dispensable(header: list[str], key: str) -> bool:
    """Whether no site is lost with a table that does not say what its rows are about, as with some from before BIDS had rules.

    The first line must be a header, without doubt, and none of participants, who are known by nothing else.
    """
    is_header = not any(_IS_CELL.match(name) for name in header)
    has_sites = "site" in header or "site_id" in header
    return key != "participant_id" and len(header) > 1 and is_header and not has_sites


def _is_id(text: str, key: str) -> bool:
    """Whether a text is spelt as subjects, sessions or files are in full."""
    prefix = PREFIXES[key]
    return text.startswith(prefix) if prefix else "/" in text


def _id_of(line: Line, at: int) -> str:
    cell = line.cells[at] if at < len(line.cells) else line.cells[0]
    return unquoted(cell).removeprefix("./")


def _problem(line: Line, width: int, columns: list[tuple[int, str]], name: str) -> str | None:
    """Why a line is no row; None where it is one."""
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
    """Whether a line that is no row may be the rest of the row before it, whose last cell is then cut by a line break."""
    is_open = last_cell.strip().startswith('"') and is_half_quoted(last_cell)
    return is_open or (_is_id(spelt, key) and not _is_id(next_spelt, key))


def _check_rows(table: Table, damaged_rows: int) -> None:
    """Raise DataError where most rows do not fit the header, which is then itself in doubt, or where a table for sites has none."""
    is_none_good = bool(table.damaged) and len(table) == 0
    if is_none_good or damaged_rows > len(table):
        first_problem = next(iter(table.damaged.values()))
        received = f"{table.name}: most rows do not fit the header ({first_problem})"
        raise DataError(received, "a cell for every column", REMEDY)
    is_for_sites = "site" in table.columns or "site_id" in table.columns
    if is_for_sites and len(table) == 0:
        raise DataError(f"{table.name}: a header without rows", "a row for each", "Add the rows or remove the table.")
