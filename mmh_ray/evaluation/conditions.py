"""What decides an evaluation's figures besides the images: two evaluations can be compared only where all of it is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from mmh_ray import evaluation, imaging
from mmh_ray.config import Config
from mmh_ray.evaluation.measuring import FACTS
from mmh_ray.provenance import hash_of

_DECIDES_NOTHING = (
    *("catalogue", "cohort", "conditions", "curves", "evaluation_report", "figures", "labels_table", "mosaic", "page"),
    *("plain_words", "promotion", "quality", "report", "statistics", "summary", "table", "target"),
)
"""Modules of `evaluation` that show or compare figures of images and make none; a new one counts until it is named here."""


def conditions(rows: Iterable[Mapping[str, Any]], truth: str | None, config: Config) -> dict[str, Any]:
    """Facts, masks, labels and truth of the scored images, settings, and the code of the measures; hashes where they are long.

    Masks, labels and truth count by names and sizes of their files: reading them would take as long as scoring.
    """
    rows = sorted(rows, key=lambda row: row["image_id"])
    folders = [] if truth is None else [Path(truth, f"sub-{name}") for name in sorted({r["subject"] for r in rows})]
    files = [path for folder in folders for path in sorted(folder.rglob("*.nii*"))]
    return {
        "facts": hash_of([[row[name] for name in FACTS] for row in rows]),
        "masks": _sizes(Path(row[kind]) for row in rows for kind in ("mask_uri", "lesion_uri") if row.get(kind)),
        "labels": _sizes(Path(row["labels_uri"]) for row in rows if row.get("labels_uri")),
        "label_table": config.evaluate.label_table,
        "truth": None if truth is None else _sizes(files),
        "cnn": config.evaluate.cnn != "none",
        "style": asdict(config.style) if config.evaluate.cnn != "none" else None,
        "seed": config.evaluate.seed,
        "measures": measures_version(),
    }


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the conditions that differ, or that one of the two does not tell."""
    names = sorted({*one, *other})
    return [name for name in names if name not in one or name not in other or one[name] != other[name]]


@cache
def measures_version() -> str:
    """Hash of the source of all modules that make figures of images; a changed comment changes it, too."""
    found = hashlib.sha256()
    for package in (evaluation, imaging):
        for path in sorted(Path(*package.__path__).glob("*.py")):
            if package is imaging or path.stem not in _DECIDES_NOTHING:
                found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def _sizes(paths: Iterable[Path]) -> str:
    return hash_of([(path.name, path.stat().st_size if path.exists() else None) for path in paths])
