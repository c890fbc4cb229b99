"""What decides an evaluation's figures besides the images: two evaluations can be compared only where all of it is the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmh_ray.config import Config
from mmh_ray.evaluation.metrics import MEASURES_VERSION
from mmh_ray.evaluation.metrics.per_image import FACTS
from mmh_ray.provenance import hash_of


def conditions(rows: Iterable[Mapping[str, Any]], truth: str | None, config: Config) -> dict[str, Any]:
    """Facts, masks, labels and truth of the scored images, settings, and the version of the measures; hashes where they are long.

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
        "measures": MEASURES_VERSION,
    }


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the conditions that differ, or that one of the two does not tell."""
    names = sorted({*one, *other})
    return [name for name in names if name not in one or name not in other or one[name] != other[name]]


def _sizes(paths: Iterable[Path]) -> str:
    return hash_of([(path.name, path.stat().st_size if path.exists() else None) for path in paths])
