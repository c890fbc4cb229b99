"""Lesion masks that lie in an archive's derivatives, each for the scans that its name fits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmh_ray.bids.archives import IGNORED
from mmh_ray.bids.entities import Entities, parse
from mmh_ray.bids.folders import check_file
from mmh_ray.bids.masks import files_of_derivatives
from mmh_ray.bids.text import Findings, printable
from mmh_ray.errors import DataError

_ENDINGS = ("_label-lesion_mask.nii.gz",)


def add_lesions(rows: Iterable[dict[str, Any]]) -> None:
    """Set ``lesion_uri`` of every row of a manifest: the path of a lesion mask, None where there is none.

    A mask in `derivatives/**/sub-X[_ses-Y ...]_label-lesion_mask.nii.gz` is for every scan that has all of the entities in its name
    (`label`, `desc`, `space` aside); of several, the one that names most. Whether it lies on the scan's grid is seen when it is read.
    What is no regular file of the archive is left out and warned of.
    """
    findings = Findings()
    masks: dict[Path, dict[str, list[tuple[dict[str, str], str]]]] = {}
    for row in rows:
        entities = parse(row["uri"])
        root = _root(Path(row["uri"]), entities)
        if root is not None and root not in masks:
            masks[root] = _by_subject(root, findings)
        own = entities.tags
        fitting = [] if root is None else masks[root].get(own["sub"], [])
        fitting = [(tags, path) for tags, path in fitting if tags.items() <= own.items()]
        row["lesion_uri"] = max(fitting, key=lambda pair: len(pair[0]))[1] if fitting else None
    findings.warn()


def _root(path: Path, entities: Entities) -> Path | None:
    """The archive that a scan lies in: what holds the folder of its subject."""
    subject = entities.folders[0]
    return next((folder.parent for folder in path.parents if folder.name == subject), None)


def _by_subject(root: Path, findings: Findings) -> dict[str, list[tuple[dict[str, str], str]]]:
    found: dict[str, list[tuple[dict[str, str], str]]] = {}
    for entry in files_of_derivatives(root, _ENDINGS, findings):
        try:
            tags = parse(entry.path).without(*IGNORED, "label").tags
        except DataError:
            continue  # not named as BIDS names files
        shown = printable(entry.path)
        try:
            check_file(entry.path, root, shown, entry.is_symlink())
        except DataError as error:
            findings.note("a lesion mask left out", error.received)
            continue
        known = found.setdefault(tags["sub"], [])
        if shown != entry.path:
            findings.note("a lesion mask left out, its path is not UTF-8", entry.path)
        elif any(tags == others for others, _ in known):
            findings.note("a lesion mask left out, the second of its entities", entry.path)
        else:
            known.append((tags, entry.path))
    return found
