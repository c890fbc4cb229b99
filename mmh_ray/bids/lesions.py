"""Lesion masks that lie in an archive's derivatives, each for the scans that its name fits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmh_ray.bids.archives import IGNORED
from mmh_ray.bids.companions import DERIVATIVES, Companions, archive_of, find_companions, fitting, most_precise
from mmh_ray.bids.entities import parse

_ENDINGS = ("_label-lesion_mask.nii.gz",)


def add_lesions(rows: Iterable[dict[str, Any]]) -> None:
    """Set ``lesion_uri`` of every row of a manifest: the path of a lesion mask, None where there is none.

    A mask in `derivatives/**/sub-X[_ses-Y ...]_label-lesion_mask.nii.gz` is for every scan that has all of the entities
    in its name (`label`, `desc`, `space` aside); of several, the one that names most. Whether it lies on the scan's
    grid is seen when it is read.
    """
    masks: dict[Path | None, Companions] = {None: {}}
    for row in rows:
        root = archive_of(row["uri"])
        if root is not None and root not in masks:
            masks[root] = find_companions(root / DERIVATIVES, _ENDINGS, (*IGNORED, "label"), root)
        found = most_precise(fitting(parse(row["uri"]), masks[root]))
        row["lesion_uri"] = str(found[0].path) if found else None
