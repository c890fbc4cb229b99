"""Matches lesion masks in an archive's derivatives to scans by their names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmh_ray.bids.archives import DERIVED_ENTITIES
from mmh_ray.bids.companions import Companions, find_companions, fitting, most_precise, nearest_archive
from mmh_ray.bids.entities import parse
from mmh_ray.bids.text import warn_of

_ENDINGS = ("_label-lesion_mask.nii.gz",)
_WHAT = "lesion mask"


def add_lesions(rows: Iterable[dict[str, Any]]) -> None:
    """Set ``lesion_uri`` of every row of a manifest to the path of a lesion mask, or None.

    A mask `derivatives/**/sub-X[_ses-Y ...]_label-lesion_mask.nii.gz` is for every scan with all entities of the mask's
    name, except `label`, `desc`, `space`, `res` and `den`. Of several, the one with most entities is used, then the
    first by path. Whether it fits the scan's grid is checked when it is read. A mask that is not a regular file of the
    archive is left out with a warning.
    """
    masks: dict[Path | None, Companions] = {None: {}}
    others: set[str] = set()
    for row in rows:
        scan = parse(row["uri"])
        root = nearest_archive(row["uri"], scan)
        if root is not None and root not in masks:
            masks[root] = find_companions(root, _ENDINGS, (*DERIVED_ENTITIES, "label"), _WHAT, is_archive=True)
        candidates = most_precise(fitting(scan, masks[root]))
        paths = [str(candidate.path) for candidate in candidates]
        row["lesion_uri"] = paths[0] if paths else None
        others.update(paths[1:])
    warn_of(sorted(others), f"a second {_WHAT} with the same entities, left out")
