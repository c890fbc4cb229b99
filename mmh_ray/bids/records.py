"""Collects what an archive's tables and sidecars say about its images, level by level."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import DirEntry
from pathlib import Path
from typing import Any, TypedDict

from mmh_ray.bids.entities import Entities
from mmh_ray.bids.sidecars import Sidecar, inherited, sidecars_among
from mmh_ray.bids.sites import Listed, Site, site_of
from mmh_ray.bids.tables import Table, read_table
from mmh_ray.bids.text import Findings, listed, number_of, printable, text_of
from mmh_ray.bids.tsv import misnamed
from mmh_ray.errors import ConfigError, DataError

OLDEST_YEARS = 130.0
STRONGEST_TESLA = 30.0
"""Larger values are codes for a missing value, or have another unit."""

_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}

_CONTRADICTS = "a table with different values for the same thing"
_DAMAGED = "a row of a table that cannot be used"
_UNCLEAR_SITE = "an image whose site is unclear"
_UNLISTED = "a subject without a row in participants.tsv"
_NOT_READ = "a table that is not read, because of its name"


class Facts(TypedDict):
    """Columns of a manifest's row that come from tables and sidecars."""

    site: str | None
    age: float | None
    sex: str | None
    manufacturer: str | None
    field_strength_t: float | None


@dataclass(frozen=True)
class Level:
    """The folder of a subject or of a session, with the tables and sidecars that apply there.

    Attributes
    ----------
    folders:
        Folder names, beginning with the subject's, such as `("sub-01", "ses-1")`.
    path:
        The folder.
    names:
        Names of its entries.
    sidecars:
        JSON files of the levels above, then its own.
    sessions, scans:
        The subject's table of sessions, and the table of scans at this level; None if there is none.
    problem:
        Why one of the tables cannot be used; then all images at this level are unusable.
    """

    folders: tuple[str, ...]
    path: Path
    names: frozenset[str]
    sidecars: tuple[Sidecar, ...]
    sessions: Table | None = None
    scans: Table | None = None
    problem: DataError | None = None

    def with_sidecars(self, nearer: Iterable[Sidecar]) -> Level:
        """A copy with the sidecars of a folder below added at the end."""
        return dataclasses.replace(self, sidecars=(*self.sidecars, *nearer))


class Records:
    """Tables and sidecars of one archive.

    Parameters
    ----------
    root:
        Folder of the archive, links resolved.
    entries:
        Its entries.
    site_pattern:
        Regular expression with a group `site`, searched in the relative path.
    findings:
        Collects warnings.

    Raises
    ------
    DataError
        If participants.tsv exists but cannot be used.
    ConfigError
        If ``site_pattern`` is unusable.
    """

    def __init__(
        self, root: Path, entries: Sequence[DirEntry[str]], site_pattern: str | None, findings: Findings
    ) -> None:
        self.root = root
        self.findings = findings
        self.sites: dict[str, Site] = {}
        self._pattern = _compiled(site_pattern)
        names = frozenset(entry.name for entry in entries)
        try:
            self.participants = self._table([(root, names)], "participants.tsv", "participant_id")
        except DataError as error:  # this error refuses the whole archive, so it names the archive
            raise DataError(f"{root}/{error.received}", error.expected, error.remedy) from error
        self.sidecars = sidecars_among(entries, root, findings)

    def level_of(self, folder: Path, entries: Sequence[DirEntry[str]], above: Level | None) -> Level:
        """The level of a subject (``above`` is None) or of a session (``above`` is its subject's)."""
        names = frozenset(entry.name for entry in entries)
        places = [(folder, names)]
        sidecars = sidecars_among(entries, self.root, self.findings)
        sessions: Table | None = None
        scans: Table | None = None
        problem: DataError | None = None
        if above is None:
            folders: tuple[str, ...] = (folder.name,)
            sidecars = self.sidecars + sidecars
            self._note_unlisted(folder.name)
        else:
            folders = (*above.folders, folder.name)
            sidecars = above.sidecars + sidecars
            places.append((above.path, above.names))
            sessions = above.sessions
            problem = above.problem
        try:
            if above is None:
                sessions = self._table(places, f"{folder.name}_sessions.tsv", "session_id")
            scans = self._table(places, f"{'_'.join(folders)}_scans.tsv", "filename")
        except DataError as error:
            problem = problem or error
        return Level(
            folders=folders,
            path=folder,
            names=names,
            sidecars=sidecars,
            sessions=sessions,
            scans=scans,
            problem=problem,
        )

    def facts_of(self, entities: Entities, file_name: str, relative: str, level: Level) -> Facts:
        """Site, person and scanner of an image."""
        tables = self._tables_for(file_name, level)
        sidecar = inherited(level.sidecars, entities)
        site = site_of(relative, tables, sidecar, self._pattern)
        self.sites[relative] = site
        if site.name is None and site.why is not None:
            self.findings.note(_UNCLEAR_SITE, f"{relative}: {site.why}")
        values: dict[str, str] = {}
        for table, about in tables:
            values |= table.values(about)
        age = values.get("age", "").rstrip("+")  # 90+ is used for everyone of 90 and older
        sex = values.get("sex", "").lower()
        manufacturer = sidecar.values.get("Manufacturer", values.get("manufacturer"))
        strength = sidecar.values.get("MagneticFieldStrength", values.get("field_strength_t"))
        return {
            "site": site.name,
            "age": self._number(age, OLDEST_YEARS, f"an age beyond {OLDEST_YEARS:g} years", relative),
            "sex": _SEXES.get(sex),
            "manufacturer": text_of(manufacturer),
            "field_strength_t": self._number(
                strength, STRONGEST_TESLA, f"a field strength beyond {STRONGEST_TESLA:g} tesla", relative
            ),
        }

    def why_no_sites(self) -> str:
        """Probable reason why no image has a site, in brackets, for an error; empty if unknown."""
        reasons: dict[str, None] = {}  # each once, in the order of the images
        for site in self.sites.values():
            if site.why:
                reasons[site.why] = None
        if reasons:
            return f" ({listed(list(reasons))})"
        table = self.participants
        if table is None:
            return ""
        return f" ({table.name} has columns {listed(table.columns)})"

    def _tables_for(self, file_name: str, level: Level) -> list[Listed]:
        """Tables that may have a row for an image, the most specific last."""
        tables = []
        if self.participants is not None:
            tables.append(Listed(self.participants, level.folders[0]))
        if level.sessions is not None and len(level.folders) > 1:
            tables.append(Listed(level.sessions, level.folders[-1]))
        if level.scans is not None:
            tables.append(Listed(level.scans, f"anat/{file_name}"))
        return tables

    def _table(self, places: Sequence[tuple[Path, frozenset[str]]], file_name: str, key: str) -> Table | None:
        """The table with this name in the first of some folders; None if there is none.

        Raises
        ------
        DataError
            If it cannot be used. Also if it is missing, but a similar table that is misnamed or in another of the
            folders has sites.
        """
        folder, names = places[0]
        if file_name in names:
            table = read_table(folder / file_name, key, self.root)
            if not table.has_key:
                self.findings.note(f"a table that is not read, because it has no column {key}", table.name)
                return None
            self.findings.note(_CONTRADICTS, [f"{table.name}: {text}" for text in table.contradictions()])
            self.findings.note(_DAMAGED, table.damaged.values())
            return table
        for other_folder, other_names in places:
            other = misnamed(other_names, file_name)
            if other is not None:
                self._check_misnamed(other_folder / other, file_name, key)
        return None

    def _check_misnamed(self, path: Path, file_name: str, key: str) -> None:
        """Raise DataError if a table with a wrong name has sites or is unreadable; only note it otherwise."""
        name = printable(path.relative_to(self.root))
        try:
            may_have_sites = read_table(path, key, self.root).has_sites
        except DataError:
            may_have_sites = True
        if may_have_sites:
            remedy = "Rename it, and save it as tab-separated text in UTF-8, or move it out of the archive."
            received = f"{name}: a table that is not read, because of its name"
            raise DataError(received, f"{file_name} in its place", remedy)
        self.findings.note(_NOT_READ, name)

    def _note_unlisted(self, subject: str) -> None:
        """Note a subject without a row in participants.tsv; if the table has sites, each image reports this itself."""
        table = self.participants
        if table is not None and not table.has_sites and len(table) and subject not in table:
            self.findings.note(_UNLISTED, f"{subject}{table.but_for(subject)}")

    def _number(self, value: Any, most: float, too_large: str, relative: str) -> float | None:
        """A number up to ``most``; a larger one is None and noted as ``too_large``."""
        number = number_of(value, most)
        if number is not None:
            return number
        is_number = number_of(value, float("inf")) is not None
        if is_number:
            self.findings.note(f"{too_large}, left out", f"{relative} ({listed([str(value)])})")
        return None


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    received = f"manifest.site_pattern={pattern!r}"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{received}: {error}", "a regular expression", "Correct it.") from error
    if "site" not in compiled.groupindex:
        raise ConfigError(received, "a group (?P<site>...)", "Name the group that matches the site.")
    return compiled
