"""A subject's scans of one sequence as the evaluation reads them: scan, brain mask, truth, and every method's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmh_ray.errors import DataError, naming_mask
from mmh_ray.evaluation.baselines.image_baselines import Baseline
from mmh_ray.evaluation.inputs.label_tables import TableName
from mmh_ray.evaluation.inputs.labels import Drawn, read_drawn
from mmh_ray.evaluation.metrics.segmentation import TISSUES, tissue_labels
from mmh_ray.imaging.intensity import correct_bias
from mmh_ray.imaging.mask import find_brain, on_grid_of
from mmh_ray.imaging.volume import Volume, read_mask, read_volume

Row = dict[str, Any]

_SAME_AFFINE_MM = 1e-3
LEAST_COMMON = 500
"""Voxels of a common part below which its features say little."""


@dataclass(frozen=True)
class Case:
    """One subject's usable images of one sequence.

    Attributes
    ----------
    rows:
        Manifest rows, each with the paths of its outputs by archive under the key ``outputs``.
    pictured:
        Whether middle slices are wanted for the figures.
    """

    subject: str
    sequence: str
    rows: tuple[Row, ...]
    pictured: bool = False


@dataclass(frozen=True)
class Settings:
    """What scoring any case needs.

    Attributes
    ----------
    methods:
        Baselines and archives in the order of the tables.
    baselines:
        Fitted baselines by sequence and method.
    truth:
        Folder of the truth.
    iterations:
        N4's iterations per level.
    slices:
        Methods of which slices for the convolutional probes are wanted.
    style:
        Style vector ``(D,)`` of an image scaled by its percentiles, its brain and affine; wanted of the same methods.
    common:
        By sequence and shape of the grid, the voxels that are brain in everybody (:func:`common_masks`).
    label_table:
        By which table label maps are read, as ``evaluate.label_table`` says.
    """

    methods: tuple[str, ...]
    baselines: Mapping[str, Mapping[str, Baseline]]
    truth: str | None
    iterations: tuple[int, ...]
    slices: frozenset[str] = frozenset()
    common: Mapping[tuple[str, tuple[int, ...]], np.ndarray] = field(default_factory=dict)
    style: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None
    label_table: Literal["auto"] | TableName = "auto"


@dataclass(frozen=True, eq=False)
class Truth:
    """What a simulated archive knows: noise-free image, shares and labels of the tissues, lesions; None where not given."""

    noisefree: np.ndarray
    tissues: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None
    lesion: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Scan:
    """One usable scan with its brain mask, the scan after N4, and the tissues that others drew in it, where there are such."""

    row: Row
    volume: Volume
    mask: np.ndarray
    corrected: np.ndarray
    drawn: Drawn | None = None


def read_scan(row: Row, iterations: tuple[int, ...], truth: Truth | None = None) -> Scan:
    """Read a scan and its mask, estimated where the archive has none, and correct its bias field.

    Raises
    ------
    DataError
        If scan or mask cannot be used, or the truth lies on another grid.
    """
    volume = read_volume(row["uri"])
    mask = _read_mask(row, volume)
    if truth is not None:
        _check_shape(truth.noisefree, volume, f"truth of {row['image_id']}")
    return Scan(row, volume, mask, correct_bias(volume.data, mask, volume.spacing, iterations))


def read_output(path: str, scan: Scan) -> np.ndarray:
    """A method's output on the scan's grid.

    Raises
    ------
    DataError
        If it cannot be read or has another shape or affine.
    """
    output = read_volume(path)
    _check_shape(output.data, scan.volume, path)
    off = float(np.abs(output.affine - scan.volume.affine).max())
    if off > _SAME_AFFINE_MM:
        remedy = "Resample it to the scan's grid (mmh harmonize does so by default)."
        raise DataError(f"{path}: affine differs by up to {off:.3g} mm", "the scan's affine", remedy)
    return output.data


def read_lesion(path: str, scan: Scan) -> np.ndarray:
    """A lesion mask on the scan's grid; DataError where it lies on another or cannot be read."""
    return read_output(path, scan) > 0.5


def read_labels(scan: Scan, table: Literal["auto"] | TableName) -> Drawn:
    """The tissues that others drew in a scan, from the label map that its row names.

    Raises
    ------
    DataError
        As :func:`~mmh_ray.evaluation.inputs.labels.read_drawn`.
    """
    row, corrected = scan.row, scan.volume.like(scan.corrected)
    names, space = row.get("labels_names") or (), row.get("labels_space")
    return read_drawn(row["labels_uri"], corrected, scan.mask, row["sequence"], table, names, space)


def read_truth(folder: str, subject: str, sequence: str) -> Truth:
    """The truth of a subject.

    Raises
    ------
    DataError
        If there is no noise-free image of the sequence, or a map that is there cannot be read.
    """
    stem = Path(folder, f"sub-{subject}", "anat", f"sub-{subject}")
    paths = {tissue: Path(f"{stem}_label-{tissue}_probseg.nii.gz") for tissue in TISSUES}
    noisefree = read_volume(f"{stem}_desc-noisefree_{sequence}.nii.gz").data
    tissues = {tissue: read_volume(path).data for tissue, path in paths.items() if path.exists()}
    labels = tissue_labels(np.stack([tissues[name] for name in TISSUES])) if len(tissues) == len(TISSUES) else None
    lesion = Path(f"{stem}_label-lesion_mask.nii.gz")
    return Truth(noisefree, tissues, labels, read_volume(lesion).data > 0.5 if lesion.exists() else None)


def scan_mask(row: Row) -> np.ndarray:
    """The brain of a scan as :func:`read_scan` gives it.

    Raises
    ------
    DataError
        If scan or mask cannot be used.
    """
    return _read_mask(row, read_volume(row["uri"]))


def common_masks(
    masks: Iterable[tuple[Row, np.ndarray]],
) -> dict[tuple[str, tuple[int, ...]], np.ndarray]:
    """By sequence and shape, the voxels that are brain in every scan of that shape: a part that names no person.

    Whoever looks at people inside their own brains finds them again by the outline, even where a method gave everybody one picture. A
    shape of a single subject, or of which fewer than :data:`LEAST_COMMON` voxels are left, has no common part.
    """
    common: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
    people: dict[tuple[str, tuple[int, ...]], set[str]] = {}
    for row, mask in masks:
        key = (row["sequence"], mask.shape)
        common[key] = common.get(key, mask) & mask
        people.setdefault(key, set()).add(row["subject"])
    return {key: own for key, own in common.items() if len(people[key]) > 1 and own.sum() >= LEAST_COMMON}


def on_one_grid(a: Scan, b: Scan) -> bool:
    """Whether two scans can be compared voxel by voxel."""
    same = a.volume.data.shape == b.volume.data.shape
    return same and np.allclose(a.volume.affine, b.volume.affine, atol=_SAME_AFFINE_MM)


def _read_mask(row: Row, volume: Volume) -> np.ndarray:
    if row["mask_uri"] is None:
        return find_brain(volume).mask
    given = read_mask(row["mask_uri"])
    with naming_mask(row["mask_uri"]):
        mask, _ = on_grid_of(volume, given)
    if not mask.any():
        raise DataError(f"{row['mask_uri']}: empty mask", "voxels of 1 in the brain", "Make the mask again.")
    return mask


def _check_shape(data: np.ndarray, volume: Volume, name: str) -> None:
    if data.shape != volume.data.shape:
        raise DataError(f"{name}: shape {data.shape}", f"the scan's {volume.data.shape}", "Put it on the scan's grid.")
