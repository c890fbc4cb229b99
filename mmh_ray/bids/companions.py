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


def nearest_archive(uri: str, scan: Entities) -> Path | None:
    """The archive of a scan: the parent of its subject's folder; None if no folder has the subject's name.

    The folder nearest to the scan counts, because an archive may itself be inside a folder named `sub-...`.
    """
    subject = scan.folders[0]
    for folder in Path(uri).parents:
        if folder.name == subject:
            return folder.parent
    return None


def find_companions(
    root: Path,
    endings: tuple[str, ...],
    ignored: Sequence[str],
    what: str,
    is_archive: bool = False,
) -> Companions:
    """Regular files `sub-*ENDING` below a folder; hidden files and files without a BIDS name are left out.

    Parameters
    ----------
    root:
        Folder to search.
    ignored:
        Entities that describe how the file was made; they do not identify the image.
    what:
        Name of this kind of file, for warnings.
    is_archive:
        Whether to search only the derivatives of ``root``, and to refuse links that lead out of ``root``.
    """
    findings = Findings()
    find_files = files_of_derivatives if is_archive else _files
    entries = find_files(root, endings, findings)
    companions: defaultdict[str, list[Companion]] = defaultdict(list)
    for entry in entries:
        try:
            entities = parse(entry.path)
        except DataError:
            continue  # no BIDS name
        shown = printable(entry.path)
        try:
            check_file(entry.path, root, shown, is_link=is_archive and entry.is_symlink())
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


def _files(root: Path, endings: tuple[str, ...], findings: Findings) -> list[os.DirEntry[str]]:
    """Entries below a folder whose names have one of these endings, ordered by path; notes unreadable folders."""

    def note_unread(path: str) -> None:
        findings.note("a folder that cannot be read", path)

    files = []
    for _, entries in walk(root, note_unread):
        files += [entry for entry in entries if entry.name.endswith(endings)]
    return files
