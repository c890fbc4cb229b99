"""Finds files in an archive's derivatives that belong to scans by their names: lesion masks and label maps."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmh_ray.bids.entities import Entities, parse
from mmh_ray.bids.folders import check_file, walk
from mmh_ray.bids.masks import files_of_derivatives
from mmh_ray.bids.text import Findings, printable
from mmh_ray.errors import DataError


class Companion(NamedTuple):
    """A file that belongs to scans: entities of its name, entities that a scan must have, path."""

    entities: Entities
    needed: dict[str, str]
    path: Path


Companions = dict[str, list[Companion]]
"""By subject, ordered by path."""


def archive_of(uri: str, scan: Entities) -> Path | None:
    """The archive of a scan: the parent of its subject's folder; None if no folder has the subject's name.

    The folder nearest to the scan counts, because an archive may itself be inside a folder named `sub-...`.
    """
    subject = scan.folders[0]
    for folder in Path(uri).parents:
        if folder.name == subject:
            return folder.parent
    return None


def find_companions(
    folder: str | Path,
    endings: tuple[str, ...],
    ignored: Sequence[str],
    what: str,
    archive: Path | None = None,
) -> Companions:
    """Regular files `sub-*ENDING` below a folder; hidden files and files without a BIDS name are left out.

    Parameters
    ----------
    folder:
        Folder to search; not used if an ``archive`` is given.
    ignored:
        Entities that describe how the file was made; they do not identify the image.
    what:
        Name of this kind of file, for warnings.
    archive:
        Archive whose derivatives are searched; no link may lead out of it. None: the user chose the folder.
    """
    findings = Findings()
    entries = _files(folder, endings, findings) if archive is None else files_of_derivatives(archive, endings, findings)
    companions: defaultdict[str, list[Companion]] = defaultdict(list)
    for entry in entries:
        try:
            entities = parse(entry.path)
        except DataError:
            continue  # no BIDS name
        shown = printable(entry.path)
        try:
            is_bound_to_archive = archive is not None and entry.is_symlink()
            check_file(entry.path, archive or Path(folder), shown, is_bound_to_archive)
        except DataError as error:
            findings.note(f"a {what} left out", error.received)
            continue
        if shown != entry.path:
            findings.note(f"a {what} left out, its path is not UTF-8", entry.path)
            continue
        companion = Companion(entities, entities.without(*ignored).tags, Path(entry.path))
        companions[entities.subject].append(companion)
    findings.warn()
    return dict(companions)


def fitting(scan: Entities, companions: Companions) -> list[Companion]:
    """Companions whose needed entities the scan has; `mod-T1w` requires a scan with that suffix."""
    scan_tags = scan.tags | {"mod": scan.suffix}
    candidates = companions.get(scan.subject, [])
    return [candidate for candidate in candidates if candidate.needed.items() <= scan_tags.items()]


def most_precise(companions: Sequence[Companion]) -> list[Companion]:
    """The companions with the largest number of needed entities."""
    counts = [len(companion.needed) for companion in companions]
    most = max(counts, default=0)
    return [companion for companion, count in zip(companions, counts, strict=True) if count == most]


def _files(folder: str | Path, endings: tuple[str, ...], findings: Findings) -> list[os.DirEntry[str]]:
    """Entries below a folder whose names have one of these endings, ordered by path; notes unreadable folders."""

    def note_unread(path: str) -> None:
        findings.note("a folder that cannot be read", path)

    found = []
    for _, entries in walk(folder, note_unread):
        found += [entry for entry in entries if entry.name.endswith(endings)]
    return found
