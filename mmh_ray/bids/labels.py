"""Matches label maps, in an archive's derivatives or in any folder, to scans by their names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmh_ray.bids.archives import DERIVED_ENTITIES
from mmh_ray.bids.companions import (
    Companion,
    Companions,
    find_companions,
    fitting,
    most_precise,
    nearest_archive,
)
from mmh_ray.bids.entities import Entities, parse
from mmh_ray.errors import DataError

KEYS = ("labels_uri", "labels_names", "labels_space")
"""Keys set by :func:`add_labels`."""

_WHAT = "label map"
_ENDINGS = ("_dseg.nii.gz", "_dseg.nii")
_NAMING = ("desc", "seg", "atlas")
"""Entities that identify a labelling; scans do not have them."""
_OWN_SPACES = frozenset({"orig", "native", "individual", "scanner", "t1w", "t2w", "pdw", "flair"})
"""Values of `space`, in lower case, that mean the person's own space and not that of a template."""


def add_labels(rows: Iterable[dict[str, Any]], folder: str | Path | None = None) -> list[str]:
    """Find the label map of every row of a manifest.

    A map `sub-X[_ses-Y ...]_dseg.nii.gz` is for every scan with all entities of the map's name, except `desc`, `seg`,
    `atlas`, `space`, `res`, `den` and `label`. A map in the scan's own space is preferred to one in a template's space,
    then the one with most entities, then the first by path. Whether it fits the scan's grid is checked when it is read.

    Parameters
    ----------
    rows:
        Get ``labels_uri``, the path; ``labels_names``, the values of `desc`, `seg` and `atlas`; ``labels_space``, the
        map's space if it is that of a template and not the scan's. All are None if there is no map.
    folder:
        Folder to search instead of the `derivatives` of each scan's archive.

    Returns
    -------
    list[str]
        A note if images had several maps of which one was chosen by path.

    Raises
    ------
    DataError
        If ``folder`` has no label map of any of the scans.
    """
    rows = list(rows)
    ignored = (*DERIVED_ENTITIES, *_NAMING, "label")
    maps: dict[Path | None, Companions] = {None: {}}
    chosen: list[str] = []
    for row in rows:
        scan = parse(row["uri"])
        root = nearest_archive(row["uri"], scan) if folder is None else Path(folder)
        if root is not None and root not in maps:
            maps[root] = find_companions(root, _ENDINGS, ignored, _WHAT, is_archive=folder is None)
        candidates = _best(scan, maps[root])
        if not candidates:
            row |= dict.fromkeys(KEYS)
            continue
        row |= _facts(scan, candidates[0])
        if len(candidates) > 1:
            chosen.append(candidates[0].path.name)
    if folder is not None and not any(row["labels_uri"] for row in rows):
        remedy = "Name the maps by the entities of their scans, such as sub-01_ses-1_desc-dlmuse_dseg.nii.gz."
        raise DataError(f"{folder}: no label map of any scan", "sub-*_dseg.nii.gz of the archive's scans", remedy)
    if not chosen:
        return []
    taken = f"the first by path was taken, such as {chosen[0]}; --labels names a folder with the ones you mean"
    return [f"several label maps fit each of {len(chosen)} images: {taken}"]


def _best(scan: Entities, maps: Companions) -> list[Companion]:
    """The most precise maps: of those in the scan's own space, or of all if there are none."""
    candidates = fitting(scan, maps)
    in_own_space = [label_map for label_map in candidates if _foreign_space(scan, label_map) is None]
    return most_precise(in_own_space or candidates)


def _facts(scan: Entities, label_map: Companion) -> dict[str, Any]:
    tags = label_map.entities.tags
    return {
        "labels_uri": str(label_map.path),
        "labels_names": tuple(tags[key] for key in _NAMING if key in tags),
        "labels_space": _foreign_space(scan, label_map),
    }


def _foreign_space(scan: Entities, label_map: Companion) -> str | None:
    """Space of a map if it is a template's and not the scan's; None for the scan's or the person's own space."""
    space = label_map.entities.tags.get("space")
    if space is None or space.lower() in _OWN_SPACES or space == scan.tags.get("space"):
        return None
    return space
