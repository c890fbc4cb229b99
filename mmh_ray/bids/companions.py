"""Files of an archive's derivatives that belong to its scans by what their names say: lesion masks, label maps."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmh_ray.bids.entities import Entities, parse
from mmh_ray.errors import DataError
from mmh_ray.files import is_inside

log = logging.getLogger(__name__)

DERIVATIVES = "derivatives"


class Companion(NamedTuple):
    """A file that belongs to scans: all that its name says, the entities that a scan must have, its path."""

    entities: Entities
    needed: dict[str, str]
    path: Path


Companions = dict[str, list[Companion]]
"""By subject, in the order of the paths."""


def archive_of(uri: str) -> Path | None:
    """The archive that a scan lies in: what holds the folder of its subject; None where no folder is named so.

    The folder nearest to the scan counts: an archive may itself lie in a folder named `sub-...`.
    """
    for folder in Path(uri).parents:
        if folder.name.startswith("sub-"):
            return folder.parent
    return None


def find_companions(
    folder: str | Path, endings: tuple[str, ...], ignored: Sequence[str], archive: Path | None = None
) -> Companions:
    """Files `sub-*ENDING` below a folder; hidden ones and what has no BIDS name are left out.

    Parameters
    ----------
    ignored:
        Entities that say how the file was made, not of which image it is.
    archive:
        What no link may lead out of; such files are left out with a warning. None: the user named the folder himself.
    """
    found: defaultdict[str, list[Companion]] = defaultdict(list)
    for path in sorted(_files(Path(folder), endings)):
        if archive is not None and not is_inside(path, archive):
            log.warning("%s is left out: a link out of the archive", path)
            continue
        try:
            entities = parse(path)
        except DataError:
            continue  # not named as BIDS names files
        found[entities.subject].append(Companion(entities, entities.without(*ignored).tags, path))
    return dict(found)


def fitting(scan: Entities, companions: Companions) -> list[Companion]:
    """Companions whose needed entities the scan has; `mod-T1w` asks for a scan of that suffix."""
    own = scan.tags | {"mod": scan.suffix}
    return [one for one in companions.get(scan.subject, []) if one.needed.items() <= own.items()]


def most_precise(found: Sequence[Companion]) -> list[Companion]:
    """Those of some companions that name most entities of the scan."""
    most = max((len(one.needed) for one in found), default=0)
    return [one for one in found if len(one.needed) == most]


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    for current, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if name.startswith("sub-") and name.endswith(endings):
                yield Path(current, name)
