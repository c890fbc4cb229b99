"""Files of an archive's derivatives that belong to its scans by what their names say: lesion masks, label maps."""

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
    """A file that belongs to scans: all that its name says, the entities that a scan must have, its path."""

    entities: Entities
    needed: dict[str, str]
    path: Path


Companions = dict[str, list[Companion]]
"""By subject, in the order of the paths."""


def archive_of(uri: str, scan: Entities) -> Path | None:
    """The archive that a scan lies in: what holds the folder of its subject; None where no folder is named so.

    The folder nearest to the scan counts: an archive may itself lie in a folder named `sub-...`.
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
    """Regular files `sub-*ENDING` below a folder; hidden ones and what has no BIDS name are left out.

    Parameters
    ----------
    folder:
        Where to look; not asked where there is an ``archive``.
    ignored:
        Entities that say how the file was made, not of which image it is.
    what:
        What such a file is, for the warnings of those that are left out.
    archive:
        In whose derivatives to look, and what no link may lead out of. None: the user named the folder himself.
    """
    findings = Findings()
    entries = _files(folder, endings, findings) if archive is None else files_of_derivatives(archive, endings, findings)
    found: defaultdict[str, list[Companion]] = defaultdict(list)
    for entry in entries:
        try:
            entities = parse(entry.path)
        except DataError:
            continue  # not named as BIDS names files
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
        found[entities.subject].append(Companion(entities, entities.without(*ignored).tags, Path(entry.path)))
    findings.warn()
    return dict(found)


def fitting(scan: Entities, companions: Companions) -> list[Companion]:
    """Companions whose needed entities the scan has; `mod-T1w` asks for a scan of that suffix."""
    scan_tags = scan.tags | {"mod": scan.suffix}
    candidates = companions.get(scan.subject, [])
    return [candidate for candidate in candidates if candidate.needed.items() <= scan_tags.items()]


def most_precise(companions: Sequence[Companion]) -> list[Companion]:
    """Those of some companions that name most entities of the scan."""
    counts = [len(companion.needed) for companion in companions]
    most = max(counts, default=0)
    return [companion for companion, count in zip(companions, counts, strict=True) if count == most]


def _files(folder: str | Path, endings: tuple[str, ...], findings: Findings) -> list[os.DirEntry[str]]:
    """What has such a name below a folder, in the order of its path; one that cannot be read is warned of."""

    def note_unread(path: str) -> None:
        findings.note("a folder that cannot be read", path)

    found = []
    for _, entries in walk(folder, note_unread):
        found += [entry for entry in entries if entry.name.endswith(endings)]
    return found
