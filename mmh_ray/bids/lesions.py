"""Lesion masks that lie in an archive's derivatives, each for the scans that its name fits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmh_ray.bids.archives import IGNORED
from mmh_ray.bids.entities import parse
from mmh_ray.errors import DataError

_PATTERN = "derivatives/**/sub-*_label-lesion_mask.nii.gz"


def add_lesions(rows: Iterable[dict[str, Any]]) -> None:
    """Set ``lesion_uri`` of every row of a manifest: the path of a lesion mask, None where there is none.

    A mask in `derivatives/**/sub-X[_ses-Y ...]_label-lesion_mask.nii.gz` is for every scan that has all of the entities in its name
    (`label`, `desc`, `space` aside); of several, the one that names most. Whether it lies on the scan's grid is seen when it is read.
    """
    masks: dict[Path, dict[str, list[tuple[dict[str, str], Path]]]] = {}
    for row in rows:
        root = _root(Path(row["uri"]))
        if root is not None and root not in masks:
            masks[root] = _by_subject(root)
        own = parse(row["uri"]).tags
        fitting = [] if root is None else masks[root].get(own["sub"], [])
        fitting = [(tags, path) for tags, path in fitting if tags.items() <= own.items()]
        row["lesion_uri"] = str(max(fitting, key=lambda pair: len(pair[0]))[1]) if fitting else None


def _root(path: Path) -> Path | None:
    """The archive that a scan lies in: what holds the folder of its subject."""
    return next((folder.parent for folder in reversed(path.parents) if folder.name.startswith("sub-")), None)


def _by_subject(root: Path) -> dict[str, list[tuple[dict[str, str], Path]]]:
    found: dict[str, list[tuple[dict[str, str], Path]]] = {}
    for path in sorted(root.glob(_PATTERN)):
        try:
            tags = parse(path).without(*IGNORED, "label").tags
        except DataError:
            continue  # not named as BIDS names files
        found.setdefault(tags["sub"], []).append((tags, path))
    return found
