"""What the tables of an archive say of subjects, sessions and files: what one does not say clearly, it does not say."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from mmh_ray.bids.text import listed, printable, text_of
from mmh_ray.bids.tsv import Line, is_half_quoted, read_tsv, unquoted
from mmh_ray.errors import DataError

COLUMNS = ("site", "site_id", "age", "sex", "manufacturer", "field_strength_t")
"""What is read of a table, by its columns' names in lower case. `site_id` counts as `site` where that is empty."""

PREFIXES = {"participant_id": "sub-", "session_id": "ses-", "filename": ""}
"""What each key begins with; in the tables it may be left out."""

_MISSING = "n/a"
_REMEDY = "Save it as tab-separated text in UTF-8, one line a row and a cell for every column."


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
    damaged:
        What is wrong with rows that cannot be used, by what they are about.
    """

    def __init__(self, name: str, columns: list[str]) -> None:
        self.name = name
        self.columns = columns
        self.has_sites = False
        self.damaged: dict[str, str] = {}
        self._values: dict[str, dict[str, str]] = {}
        self._several: dict[str, dict[str, list[str]]] = {}  # what rows about the same do not agree in
        self._spelt: dict[str, str] = {}  # ids as the table spells them, where that is not in full
        self._similar: defaultdict[str, list[str]] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, about: str) -> bool:
        return about in self._values or about in self.damaged

    def values(self, about: str) -> dict[str, str]:
        """What the table says, without what it leaves empty, says in two ways, or says in a damaged row."""
        if about in self.damaged:
            return {}
        several = self._several.get(about, {})
        row = self._values.get(about, {})
        return {column: text for column, text in row.items() if text and column not in several}

    def leaves_site_empty(self, about: str) -> bool:
        """Whether there is a good row with an empty cell, so that a less specific table may tell the site."""
        is_clear = about not in self.damaged and "site" not in self._several.get(about, {})
        return is_clear and about in self._values and not self._values[about].get("site")

    def why_no_site(self, about: str) -> str:
        """Why the table gives no site here although it has sites."""
        if about in self.damaged:
            return self.damaged[about]
        if about not in self._values:
            return f"{self.name} has no row for {about}{self.but_for(about)}"
        sites = self._several.get(about, {}).get("site")
        if sites:
            return f"{self.name} gives {about} more than one site: {listed(sites)}"
        return f"{self.name} gives {about} no site"

    def but_for(self, about: str) -> str:
        """Ids that may be meant, as the end of a sentence; nothing where there is none. They are never taken for it."""
        if self._similar is None:
            self._similar = defaultdict(list)
            for known in self._values:
                self._similar[_bare(known)].append(self._spelt.get(known, known))
        meant = self._similar.get(_bare(about), [])
        return f", but for {listed(meant)}, which may be meant" if meant else ""

    def contradictions(self) -> list[str]:
        """What is given more than once and differs, and in what."""
        found = []
        for about, columns in self._several.items():
            differing = "; ".join(f"{name}: {listed(texts)}" for name, texts in columns.items())
            found.append(f"{about} ({differing})")
        return found

    def add(self, about: str, spelt: str, cells: list[tuple[str, str]]) -> None:
        """Add a row's columns and texts; a column may come twice, as a row about the same may."""
        if spelt != about:
            self._spelt[about] = spelt
        row = self._values.setdefault(about, {})
        for column, text in cells:
            first = row.setdefault(column, text)
            if first == text:
                continue
            texts = self._several.setdefault(about, {}).setdefault(column, [first or _MISSING])
            if (text or _MISSING) not in texts:
                texts.append(text or _MISSING)

    def choose_site_column(self) -> None:
        """Let `site_id` be the site where no row has a `site`: a mixture of both would name one site in two ways."""
        if not self._says("site"):
            for row in self._values.values():
                row["site"] = row.pop("site_id", "")
            for columns in self._several.values():
                if "site_id" in columns:
                    columns["site"] = columns.pop("site_id")
        has_column = "site" in self.columns or "site_id" in self.columns
        self.has_sites = has_column and (self._says("site") or bool(self.damaged))

    def _says(self, column: str) -> bool:
        """Whether any row has something in this column."""
        is_in_some_row = any(row.get(column) for row in self._values.values())
        return is_in_some_row or any(column in columns for columns in self._several.values())


def _bare(about: str) -> str:
    """What is left of an id or a file name without folders, prefix, signs, case and leading zeros."""
    name = re.split(r"[/\\]", about)[-1].casefold().partition(".")[0]
    without_prefix = re.sub(r"^((sub|ses)[-_ ]*)+", "", name)
    return re.sub(r"[\W_]", "", without_prefix).lstrip("0")


def read_table(path: Path, key: str, root: Path) -> Table:
    """Rows of a TSV by its column ``key``: `participant_id`, `session_id` or `filename`.

    A row with more or fewer cells than the header cannot be used, nor one that seems to go on in the next line. Of rows
    about the same only what they agree in counts.

    Raises
    ------
    DataError
        As :func:`~mmh_ray.bids.tsv.read_tsv`; where no row can be used; where a column for sites has no row at all.
    """
    name = printable(path.relative_to(root))
    header, lines = read_tsv(path, key, root, name)
    table = Table(name, header)
    columns = [(at, column) for at, column in enumerate(header) if column in COLUMNS]
    previous: tuple[str, str, str] | None = None  # about what the last good row is, its id, its last cell
    for line in lines:
        spelt = _id_of(line, header.index(key))
        about = PREFIXES[key] + spelt.removeprefix(PREFIXES[key])
        problem = _problem(line, header, columns, name)
        if problem is None:
            table.add(about, spelt, [(column, text_of(unquoted(line.cells[at])) or "") for at, column in columns])
            previous = about, spelt, line.cells[-1]
            continue
        table.damaged[about] = problem
        if previous is not None and _goes_on(previous[1], previous[2], spelt, PREFIXES[key]):
            table.damaged[previous[0]] = f"{problem}, where {previous[0]} seems to go on"
        previous = None  # whatever else follows belongs to the damaged one
    table.choose_site_column()
    _check_rows(table)
    return table


def _id_of(line: Line, at: int) -> str:
    cell = line.cells[at] if at < len(line.cells) else line.cells[0]
    return unquoted(cell).removeprefix("./")


def _problem(line: Line, header: list[str], columns: list[tuple[int, str]], name: str) -> str | None:
    """Why a line is no row; None where it is one."""
    if len(line.cells) != len(header):
        cells = "1 cell" if len(line.cells) == 1 else f"{len(line.cells)} cells"
        return f"{name}, line {line.number}: {cells} where the header has {len(header)}"
    for at, column in columns:
        if is_half_quoted(line.cells[at]):
            return f"{name}, line {line.number}: half a quote in column {column}"
    return None


def _goes_on(spelt: str, last_cell: str, next_spelt: str, prefix: str) -> bool:
    """Whether a line that is no row may be the rest of the row before it, whose last cell is then cut by a line break."""
    if last_cell.strip().startswith('"') and is_half_quoted(last_cell):
        return True
    if prefix:
        return spelt.startswith(prefix) and not next_spelt.startswith(prefix)
    return "/" in spelt and "/" not in next_spelt


def _check_rows(table: Table) -> None:
    """Raise DataError where a table says nothing at all, but for one that has no column for sites: with it none is lost."""
    if len(table):
        return
    if table.damaged:
        received = f"{table.name}: no row that fits the header ({next(iter(table.damaged.values()))})"
        raise DataError(received, "a cell for every column", _REMEDY)
    if "site" in table.columns or "site_id" in table.columns:
        raise DataError(f"{table.name}: a header without rows", "a row for each", "Add the rows or remove the table.")
