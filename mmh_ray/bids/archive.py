"""Walks an archive: one row for every image of a subject, wherever it is, and warnings about all other images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from os import DirEntry
from pathlib import Path

from mmh_ray.bids.entities import parse
from mmh_ray.bids.folders import check_entry, check_folder, is_folder, leads_to_folder, listing, relative_name
from mmh_ray.bids.images import is_usable
from mmh_ray.bids.masks import BrainMasks
from mmh_ray.bids.records import Level, Records
from mmh_ray.bids.rows import ManifestRow, Problem, Status
from mmh_ray.bids.schema import mark_unusable, new_row
from mmh_ray.bids.sidecars import sidecars_among
from mmh_ray.bids.sites import CORRECT, HELP, note_mixtures
from mmh_ray.bids.strays import PLACE, images_outside, is_nearly_a_subject, stray_rows, stray_rows_below
from mmh_ray.bids.text import Findings, listed, printable
from mmh_ray.errors import ConfigError, DataError

_INNER = re.compile(r"(?P<archive>.+?)/sub-[^/]+/")
"""Matches the path of an image in another archive inside this one."""
_NOT_FOLLOWED = "a link to a folder, which is not followed"


class Archive:
    """A BIDS archive on a local or mounted disk.

    Parameters
    ----------
    root:
        Its folder.
    site_pattern:
        Regular expression with a group `site`, or None.
    require_site:
        Whether an image without a site is unusable.

    Raises
    ------
    DataError, ConfigError
        As :func:`~mmh_ray.bids.manifest.find_images`.
    """

    def __init__(self, root: str | Path, site_pattern: str | None, require_site: bool) -> None:
        if not os.path.isdir(root):
            remedy = "Name the folder that holds the sub-* folders; mount or copy archives of an object store."
            raise ConfigError(f"{root}: no such folder", "a BIDS archive on a local or mounted disk", remedy)
        self.root = Path(root).resolve()
        self.require_site = require_site
        self.findings = Findings()
        self.entries = listing(self.root)
        self.records = Records(self.root, self.entries, site_pattern, self.findings)
        self.masks = BrainMasks(self.root)
        self._empty: list[str] = []  # anat folders without images, of the current subject
        self._in_place = 0
        self._without_site = 0

    def all_rows(self, advance: Callable[[int], object]) -> list[ManifestRow]:
        """A row for every image of a subject and for every unreadable folder; warnings about the rest.

        Parameters
        ----------
        advance:
            Called with 1 for every row.

        Raises
        ------
        DataError
            If no image is in the place that BIDS defines, or if sites are required and no image has one.
        """
        rows: list[ManifestRow] = []
        for row in self._rows():
            rows.append(row)
            advance(1)
        outside = images_outside(self.entries, self.root, self._note_unread)
        self.findings.note("an image outside of the folders of subjects, left out", outside)
        note_mixtures(self.records.sites, self.findings)
        self.findings.warn()
        self._check(rows, outside)
        return _with_unique_ids(rows, self.root)

    def _check(self, rows: list[ManifestRow], outside: list[str]) -> None:
        """Raise DataError if no image is in its place, or if sites are required and no image has one."""
        if not self._in_place:
            raise self._nothing_in_place(rows, outside)
        has_any_site = any(row["site"] for row in rows)
        if self.require_site and self._without_site and not has_any_site:
            received = f"{self.root}: none of {len(rows)} images has a site{self.records.why_no_sites()}"
            raise DataError(received, "a site per image", HELP)

    def _nothing_in_place(self, rows: list[ManifestRow], outside: list[str]) -> DataError:
        received = f"{self.root}: no image in its place"
        elsewhere = [row["image_id"] for row in rows] + outside
        if elsewhere:
            received += f", but {len(elsewhere)} elsewhere: {listed(elsewhere)}"
        remedy = "Name the folder of the sub-*."
        for path in outside:
            inner = _INNER.match(path)
            if inner is not None:
                remedy = f"Name the folder of the sub-*, such as {self.root / inner['archive']}."
                break
        return DataError(received, f"{PLACE}*.nii[.gz]", remedy)

    def _rows(self) -> Iterator[ManifestRow]:
        for entry in self.entries:
            if entry.name.startswith("sub-") and is_folder(entry):
                self._empty.clear()
                rows = list(self._rows_of(entry, None))
                if rows:
                    self.findings.note("an anat folder without an image", self._empty)
                else:
                    self.findings.note(f"no image in {PLACE} of a subject", entry.name)
                yield from rows
            elif is_nearly_a_subject(entry.name) and leads_to_folder(entry):
                yield from self._strays_below(entry, ())

    def _rows_of(self, folder: DirEntry[str], above: Level | None) -> Iterator[ManifestRow]:
        """Rows of a subject (``above`` is None) or a session; a single row if its folder cannot be read."""
        try:
            check_folder(folder, self.root)
            entries = listing(folder.path)
        except DataError as error:
            yield self._folder_row(folder.path, error)
            return
        level = self.records.level_of(Path(folder.path), entries, above)
        for entry in entries:
            if entry.name == "anat" and is_folder(entry):
                yield from self._rows_of_anat(entry, level)
            elif above is None and entry.name.startswith("ses-") and is_folder(entry):
                yield from self._rows_of(entry, level)
            elif leads_to_folder(entry):
                yield from self._strays_below(entry, (entry.name,))
        yield from stray_rows(entries, self.root)

    def _rows_of_anat(self, folder: DirEntry[str], level: Level) -> Iterator[ManifestRow]:
        try:
            check_folder(folder, self.root)
            entries = listing(folder.path)
        except DataError as error:
            yield self._folder_row(folder.path, error)
            return
        nearer = sidecars_among(entries, self.root, self.findings)
        level = level.with_sidecars(nearer)
        rows = [self._row(entry, level) for entry in entries if is_usable(entry.name)]
        rows += stray_rows(entries, self.root, in_place=True)
        self._in_place += len(rows)
        for entry in entries:
            if leads_to_folder(entry) and not is_usable(entry.name):
                rows += self._strays_below(entry, ("anat", entry.name))
        if not rows:
            self._empty.append(relative_name(folder.path, self.root))
        yield from rows

    def _row(self, entry: DirEntry[str], level: Level) -> ManifestRow:
        """The row of one file, with the reason if it cannot be used."""
        relative = relative_name(entry.path, self.root)
        row = new_row(entry.path, relative)
        try:
            entities = parse(entry.name)
            if entities.folders != level.folders:
                expected = f"it in {'/'.join(entities.folders)}, as its name says"
                raise DataError(f"{relative}: in {'/'.join(level.folders)}", expected, "Move or rename it.")
            row["image_id"] = entities.image_id
            row["subject"] = entities.subject
            row["session"] = entities.session
            row["sequence"] = entities.suffix
            if level.problem:
                raise level.problem
            row |= self.records.facts_of(entities, entry.name, relative, level)
            check_entry(entry, self.root, relative)
            row["mask_uri"] = self.masks.of(entities)
            if self.require_site and row["site"] is None:
                self._without_site += 1
                raise self._no_site(relative)
        except DataError as error:
            mark_unusable(row, error)
        return row

    def _no_site(self, relative: str) -> DataError:
        why = self.records.sites[relative].why
        if why is None:
            return DataError(f"{relative}: no site", "a site per image", HELP)
        return DataError(f"{relative}: no site ({why})", "one site per image", CORRECT)

    def _strays_below(self, folder: DirEntry[str], inside: tuple[str, ...]) -> Iterator[ManifestRow]:
        if folder.is_symlink():
            self.findings.note(_NOT_FOLLOWED, folder.path)
            return
        yield from stray_rows_below(folder.path, self.root, inside, self._unreadable_folder_row)

    def _unreadable_folder_row(self, path: str) -> ManifestRow:
        problem = DataError(f"{printable(path)}: cannot be read", "a readable folder", "Check its permissions.")
        return self._folder_row(path, problem)

    def _folder_row(self, path: str, error: DataError) -> ManifestRow:
        """One row for all images of a folder that cannot be read."""
        self._in_place += 1
        relative = relative_name(path, self.root)
        row = new_row(path, relative)
        row["subject"] = relative.partition("/")[0].removeprefix("sub-")
        return mark_unusable(row, error)

    def _note_unread(self, path: str) -> None:
        self.findings.note("a folder that cannot be read, left out", path)


def _with_unique_ids(rows: list[ManifestRow], root: Path) -> list[ManifestRow]:
    """Of files with the same image_id, the first usable one keeps it; the others get their path as image_id."""
    seen: dict[str, ManifestRow] = {}
    good_ones_first = sorted(rows, key=lambda row: row["status"] != Status.OK)
    for row in good_ones_first:
        first = seen.setdefault(row["image_id"], row)
        if first is row:
            continue
        if not row["reason"]:
            received = f"second file of image {row['image_id']}"
            problem = Problem(received, "one", f"Remove this one or {first['uri']}.")
            row["problem"] = problem
            row["reason"] = problem.text
        row["status"] = Status.UNUSABLE
        relative = Path(row["uri"]).relative_to(root).as_posix()
        row["image_id"] = _unique_name(relative, seen)
        seen[row["image_id"]] = row
    return rows


def _unique_name(name: str, taken: dict[str, ManifestRow]) -> str:
    """The name, with a number if it is taken: different names that are not UTF-8 may be shown alike."""
    number = 1
    unique = name
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    return unique
