"""Writes and reads the files around derivative images: descriptions of the dataset and its labels, and sidecars."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmh_ray.bids.entities import archive_of
from mmh_ray.bids.text import text_of
from mmh_ray.errors import ConfigError
from mmh_ray.files import is_inside, read_object
from mmh_ray.object_store import Store, is_remote
from mmh_ray.provenance import container, whole_file, write_json

BIDS_VERSION = "1.10.0"
GENERATOR = "mmh_ray"
DESCRIPTION = "dataset_description.json"
LABELS = "descriptions.tsv"
"""Table of the labels that follow `desc-` in the names of a dataset's images."""
RAW = "raw"
"""Name of the source archive in BIDS URIs; `DatasetLinks` in the description has its location."""

README = "README.md"
READMES = ("README", README, "README.rst", "README.txt")
"""Possible names of a dataset's readme."""
BIDSIGNORE = ".bidsignore"
ADDED = (README, BIDSIGNORE)
"""Files that are added to a dataset if it has none."""

_WHAT_IT_DOES = "Harmonization of brain MRI across scanners and sites"
_HOW_TO_CITE = "logs/CITATION.md has a text for the methods section, and the references."
_IGNORE = """\
# Not part of the BIDS standard: pictures, report and ledger of mmh_ray.
report.html
ledger.parquet
figures
"""
_README = """\
# {name}

Made by mmh_ray, which brings the brain MRI of different scanners to one look.

- `report.html` shows every image before and after; `ledger.parquet` has a row for each image, with or without a result.
- The `.json` beside an image records what was done to it. `descriptions.tsv` explains the labels after `desc-`.
- `logs/CITATION.md` has a text for the methods section of a paper.
"""


def check_dataset(out: str | Path, source: str | Path) -> None:
    """Check that OUT can hold the derivatives of a source: it is new, or was made from the same source.

    Raises
    ------
    ConfigError
        If OUT holds a dataset that was not made by this software, such as the raw archive, or from another source.
    """
    path = Path(out) / DESCRIPTION
    if not os.path.lexists(path):  # or in an unreadable folder, which causes an error when something is written there
        return
    description = _description(out)
    if GENERATOR not in _values(description, "GeneratedBy", "Name"):
        received = f"{out}: holds another dataset ({path.name} without GeneratedBy {GENERATOR})"
        raise ConfigError(received, "a new folder or one of an earlier run", "Name another output folder.")
    url = _url(source)
    earlier_urls = _values(description, "SourceDatasets", "URL")
    if earlier_urls and url not in earlier_urls:
        remedy = (
            f"Name another output folder; if the archive has moved, put the new URL under SourceDatasets in {path}."
        )
        raise ConfigError(f"{out}: holds what was made of {earlier_urls[0]}", f"what was made of {url}", remedy)


def write_dataset_description(out: str | Path, source: str | Path, code_version: str) -> None:
    """Write OUT/dataset_description.json, and a README and a .bidsignore if there are none.

    Raises
    ------
    ConfigError
        As :func:`check_dataset`.
    """
    check_dataset(out, source)
    path = Path(out) / DESCRIPTION
    raw = Store(str(source)).read_object(DESCRIPTION) if is_remote(str(source)) else _description(source)
    dataset_doi = text_of(raw.get("DatasetDOI"))
    licence = text_of(raw.get("License"))
    source_dataset = {"URL": _url(source)}
    if dataset_doi is not None:
        source_dataset["DOI"] = dataset_doi
    description = {
        "Name": f"{text_of(raw.get('Name')) or 'MRI'}, harmonized",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated_by(code_version)],
        "SourceDatasets": [source_dataset],
        "DatasetLinks": {RAW: _url(source)},
        "HowToAcknowledge": _HOW_TO_CITE,
    }
    if licence is not None:
        description["License"] = licence
    write_json(path, description)
    _write_if_absent(Path(out, BIDSIGNORE), _IGNORE)
    if not any(Path(out).glob("README*")):
        _write_if_absent(Path(out, README), _README.format(name=description["Name"]))


def generated_by(code_version: str) -> dict[str, Any]:
    """An entry of `GeneratedBy`: this software, its version and, if known, its container."""
    entry: dict[str, Any] = {"Name": GENERATOR, "Version": code_version, "Description": _WHAT_IT_DOES}
    runs_in = container()
    if runs_in is not None:
        entry["Container"] = runs_in
    return entry


def bids_uri(path: str, scan: str) -> str:
    """BIDS URI of a file in the archive of a scan; for a file elsewhere, its plain URI.

    Parameters
    ----------
    path:
        The file: the scan itself or, for example, its brain mask.
    scan:
        Path or URI of a scan.

    >>> bids_uri("/study/sub-01/anat/sub-01_T1w.nii.gz", "/study/sub-01/anat/sub-01_T1w.nii.gz")
    'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    """
    archive = archive_of(scan)
    if archive is None or not path.startswith(archive):
        return _url(path)
    return f"bids:{RAW}:{quote(path.removeprefix(archive), errors='surrogateescape')}"


def write_descriptions(out: str | Path, descriptions: Mapping[str, str]) -> None:
    """Write OUT/descriptions.tsv.

    Parameters
    ----------
    descriptions:
        Meaning of each label after `desc-`.
    """
    lines = ["desc_id\tdescription"]
    for label, description in sorted(descriptions.items()):
        one_line = " ".join(description.split())
        lines.append(f"desc-{label}\t{one_line}")
    with whole_file(Path(out, LABELS)) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
    return Path(image_path).with_name(f"{_stem(image_path)}.json")


def _stem(image_path: str | Path) -> str:
    """Name of an image's file without its ending."""
    return Path(image_path).name.removesuffix(".gz").removesuffix(".nii")


def figure_paths(image_path: str | Path) -> tuple[Path, Path]:
    """Paths of a derivative's two pictures, before and after, in the subject's or session's `figures/`."""
    stem = _stem(image_path)
    folder = Path(image_path).parent.parent / "figures"
    return folder / f"{stem}_before.jpg", folder / f"{stem}_after.jpg"


def derivative_files(image_path: str | Path) -> tuple[Path, ...]:
    """All files of a derivative, the sidecar first: an image without a sidecar is treated as absent."""
    return sidecar_path(image_path), Path(image_path), *figure_paths(image_path)


def read_sidecar(image_path: str | Path) -> dict[str, Any]:
    """Content of an image's sidecar; empty if there is none or it is damaged."""
    return _read_json(sidecar_path(image_path))


def _write_if_absent(path: Path, text: str) -> None:
    """Write a text file, unless the user has a file with that name."""
    if os.path.lexists(path):
        return
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _url(source: str | Path) -> str:
    return str(source).rstrip("/") if "://" in str(source) else Path(source).resolve().as_uri()


def _description(dataset: str | Path) -> dict[str, Any]:
    """Content of a dataset's description; empty if there is none, or if it is a link out of the dataset."""
    path = Path(dataset) / DESCRIPTION
    return _read_json(path) if is_inside(path, dataset) else {}


def _values(description: dict[str, Any], section: str, key: str) -> list[Any]:
    """Values of a key in the objects of the list ``description[section]``; empty if that is no list of objects."""
    entries = description.get(section)
    objects = entries if isinstance(entries, list) else []
    return [entry[key] for entry in objects if isinstance(entry, dict) and key in entry]


def _read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON object; empty if the file is absent, damaged or not a regular file."""
    with contextlib.suppress(OSError, ValueError):
        return read_object(path)
    return {}
