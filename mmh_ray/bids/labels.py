"""Label maps of an archive's derivatives, or of any folder, each for the scans that its name fits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmh_ray.bids.archives import IGNORED
from mmh_ray.bids.companions import (
    Companion,
    Companions,
    archive_of,
    find_companions,
    fitting,
    most_precise,
)
from mmh_ray.bids.entities import Entities, parse
from mmh_ray.errors import DataError

KEYS = ("labels_uri", "labels_names", "labels_space")
"""What :func:`add_labels` sets."""

_WHAT = "label map"
_ENDINGS = ("_dseg.nii.gz", "_dseg.nii")
_NAMING = ("desc", "seg", "atlas")
"""Entities that name a labelling; a scan has none of them."""
_OWN_SPACES = frozenset({"orig", "native", "individual", "scanner", "t1w", "t2w", "pdw", "flair"})
"""Values of `space`, in lower case, that mean a person's own space and no template's."""


def add_labels(rows: Iterable[dict[str, Any]], folder: str | Path | None = None) -> list[str]:
    """Find the label map of every row of a manifest.

    A map `sub-X[_ses-Y ...]_dseg.nii.gz` is for every scan that has all of the entities in its name (those of how it
    was made aside: `desc`, `seg`, `atlas`, `space`, `res`, `den`, `label`). One in the scan's own space goes before one
    in a template's; of several, the one that names most is taken, then the first by path. Whether it can be laid on the
    scan's grid is seen when it is read.

    Parameters
    ----------
    rows:
        Gain ``labels_uri``, the path; ``labels_names``, the values of `desc`, `seg` and `atlas`; ``labels_space``, the
        template's space that the map names and the scan does not. All None where there is no map.
    folder:
        Where to look, instead of the `derivatives` of each scan's archive.

    Returns
    -------
    list[str]
        What to know: how many images had several maps of which one was chosen by path.

    Raises
    ------
    DataError
        If ``folder`` holds no label map that is of any of the scans.
    """
    rows = list(rows)
    maps: dict[Path | None, Companions] = {}
    chosen: list[str] = []
    for row in rows:
        scan = parse(row["uri"])
        root = archive_of(row["uri"], scan) if folder is None else Path(folder)
        if root not in maps:
            maps[root] = _maps(root, folder is not None)
        found = _best(scan, maps[root])
        row |= _facts(scan, found[0]) if found else dict.fromkeys(KEYS)
        if len(found) > 1:
            chosen.append(found[0].path.name)
    if folder is not None and not any(row["labels_uri"] for row in rows):
        remedy = "Name the maps by the entities of their scans, such as sub-01_ses-1_desc-dlmuse_dseg.nii.gz."
        raise DataError(f"{folder}: no label map of any scan", "sub-*_dseg.nii.gz of the archive's scans", remedy)
    if not chosen:
        return []
    taken = f"the first by path was taken, such as {chosen[0]}; --labels names a folder with the ones you mean"
    return [f"several label maps fit each of {len(chosen)} images: {taken}"]


def _maps(root: Path | None, is_given: bool) -> Companions:
    if root is None:
        return {}
    ignored = (*IGNORED, *_NAMING, "label")
    if is_given:
        return find_companions(root, _ENDINGS, ignored, _WHAT)
    return find_companions(root, _ENDINGS, ignored, _WHAT, root)


def _best(scan: Entities, maps: Companions) -> list[Companion]:
    """The maps to choose from: those in the scan's own space, where there are such, that name most of it."""
    found = fitting(scan, maps)
    own = [one for one in found if _foreign_space(scan, one) is None]
    return most_precise(own or found)


def _facts(scan: Entities, found: Companion) -> dict[str, Any]:
    tags = found.entities.tags
    names = tuple(tags[key] for key in _NAMING if key in tags)
    return dict(zip(KEYS, (str(found.path), names, _foreign_space(scan, found)), strict=True))


def _foreign_space(scan: Entities, found: Companion) -> str | None:
    """The template's space that a map names and the scan does not; None: it is the scan's, or the person's own."""
    space = found.entities.tags.get("space")
    is_own = space is None or space.lower() in _OWN_SPACES or space == scan.tags.get("space")
    return None if is_own else space
