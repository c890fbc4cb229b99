"""What lies around derivative images: dataset_description.json and sidecars."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmh_ray.errors import ConfigError
from mmh_ray.provenance import write_json

log = logging.getLogger(__name__)

BIDS_VERSION = "1.10.0"
GENERATOR = "mmh_ray"


def write_dataset_description(out: str | Path, source: str | Path, code_version: str) -> None:
    """Write OUT/dataset_description.json: a derivative dataset made by this version from that source.

    Raises
    ------
    ConfigError
        If OUT already holds a dataset that was not made by this software, such as the raw archive itself.
    """
    path = Path(out) / "dataset_description.json"
    if path.exists():
        makers = _read_json(path).get("GeneratedBy")
        if not any(isinstance(maker, dict) and maker.get("Name") == GENERATOR for maker in makers or ()):
            received = f"{out}: holds another dataset ({path.name} without GeneratedBy {GENERATOR})"
            raise ConfigError(received, "a new folder or one of an earlier run", "Name another output folder.")
    raw = {} if "://" in str(source) else _read_json(Path(source) / path.name)
    url = str(source) if "://" in str(source) else Path(source).resolve().as_uri()
    doi = {"DOI": raw["DatasetDOI"]} if isinstance(raw.get("DatasetDOI"), str) else {}
    description = {
        "Name": f"{raw.get('Name', 'MRI')}, harmonized",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": GENERATOR, "Version": code_version}],
        "SourceDatasets": [{"URL": url} | doi],
    }
    write_json(path, description)


def write_sidecar(image_path: str | Path, fields: Mapping[str, Any]) -> Path:
    """Write the `.json` beside an image, whole or not at all; NaN is refused.

    Returns
    -------
    Path
        The sidecar.
    """
    path = sidecar_path(image_path)
    write_json(path, dict(fields))
    return path


def sidecar_path(image_path: str | Path) -> Path:
    """Path of the `.json` beside an image."""
    image_path = Path(image_path)
    return image_path.with_name(f"{image_path.name.removesuffix('.gz').removesuffix('.nii')}.json")


def figure_paths(image_path: str | Path) -> tuple[Path, Path]:
    """Paths of a derivative's two pictures, before and after, in the subject's or session's `figures/`."""
    image_path = Path(image_path)
    stem = image_path.name.removesuffix(".gz").removesuffix(".nii")
    folder = image_path.parent.parent / "figures"
    return folder / f"{stem}_before.jpg", folder / f"{stem}_after.jpg"


def derivative_files(image_path: str | Path) -> tuple[Path, ...]:
    """All files of a derivative, the sidecar first: without it an image counts for nothing."""
    return sidecar_path(image_path), Path(image_path), *figure_paths(image_path)


def read_sidecar(image_path: str | Path) -> dict[str, Any]:
    """Content of an image's sidecar; empty where there is none or it is damaged."""
    return _read_json(sidecar_path(image_path))


def _read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON object; empty where the file is absent or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else {}
    return {}
