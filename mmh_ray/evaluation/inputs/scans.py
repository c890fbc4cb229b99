"""Reads a subject's scans of one sequence: scan, brain mask, truth, and the outputs of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmh_ray.errors import DataError, naming_mask
from mmh_ray.evaluation.baselines.image_baselines import Baseline
from mmh_ray.evaluation.inputs.label_tables import TableName
from mmh_ray.evaluation.inputs.labels import LabelMap, read_label_map
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.metrics.segmentation import TISSUES, tissue_labels
from mmh_ray.imaging.intensity import correct_bias
from mmh_ray.imaging.mask import SAME_AFFINE_MM, find_brain, on_grid_of
from mmh_ray.imaging.volume import Volume, read_mask, read_volume
from mmh_ray.staging import size_of, staged

if TYPE_CHECKING:
    from mmh_ray.evaluation.metrics.training import TargetCohort

LEAST_COMMON = 500
"""Minimum number of voxels of a common mask; with fewer, features are not meaningful."""

GridKey = tuple[str, tuple[int, ...]]
"""Sequence, and shape of the voxel grid."""

StyleFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Takes an image and a mask ``(I, J, K)`` and their affine; returns the style vector ``(D,)``."""


@dataclass(frozen=True)
class Case:
    """One subject's usable images of one sequence.

    Attributes
    ----------
    records:
        The scored images.
    is_pictured:
        Whether the report shows middle slices of this subject.
    reference:
        The subject's scan at the target site, which outputs are compared with; never an input.
    """

    subject: str
    sequence: str
    records: tuple[ImageRecord, ...]
    is_pictured: bool = False
    reference: ImageRecord | None = None

    @property
    def all_records(self) -> tuple[ImageRecord, ...]:
        """The scored images and the reference."""
        if self.reference is None:
            return self.records
        return (*self.records, self.reference)


@dataclass(frozen=True)
class ScoringSettings:
    """What is needed to score any case.

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
    sliced_methods:
        Methods whose slices the convolutional probes use.
    common_masks:
        By sequence and grid shape, the voxels that are brain in every scan (:func:`common_masks`).
    styled_methods:
        Methods whose style vectors are computed.
    target_cohorts:
        Facts about the target site, by sequence; empty without a target.
    label_table:
        Table that label maps are read with (setting ``evaluate.label_table``).
    """

    methods: tuple[str, ...]
    baselines: Mapping[str, Mapping[str, Baseline]]
    truth: str | None
    iterations: tuple[int, ...]
    sliced_methods: frozenset[str] = frozenset()
    common_masks: Mapping[GridKey, np.ndarray] = field(default_factory=dict)
    style: StyleFunction | None = None
    styled_methods: frozenset[str] = frozenset()
    target_cohorts: Mapping[str, TargetCohort] = field(default_factory=dict)
    label_table: Literal["auto"] | TableName = "auto"


@dataclass(frozen=True, eq=False)
class Truth:
    """The truth that a simulated archive holds about a subject; None where it holds none.

    Attributes
    ----------
    noisefree:
        ``(I, J, K)`` noise-free image of the sequence.
    tissues:
        ``(I, J, K)`` fraction of each tissue, 0 to 1, by its name.
    labels:
        ``(I, J, K)`` uint8 as of :func:`~mmh_ray.evaluation.metrics.segmentation.tissue_labels`.
    lesion:
        ``(I, J, K)`` bool.
    """

    noisefree: np.ndarray
    tissues: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None
    lesion: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Scan:
    """One usable scan.

    Attributes
    ----------
    mask:
        ``(I, J, K)`` bool, the brain.
    corrected:
        ``(I, J, K)`` the scan after N4.
    label_map:
        The labelled tissues, if there is a usable label map.
    """

    record: ImageRecord
    volume: Volume
    mask: np.ndarray
    corrected: np.ndarray
    label_map: LabelMap | None = None


def read_scan(record: ImageRecord, iterations: tuple[int, ...], truth: Truth | None = None) -> Scan:
    """Read a scan and its mask (estimated if the archive has none), and correct its bias field.

    Raises
    ------
    DataError
        If scan or mask cannot be used, or the truth has another grid.
    """
    volume = _read(record.uri)
    mask = _read_mask(record, volume)
    if truth is not None:
        _check_shape(truth.noisefree, volume, f"truth of {record.image_id}")
    corrected = correct_bias(volume.data, mask, volume.spacing, iterations)
    return Scan(record, volume, mask, corrected)


def read_output(path: str, scan: Scan) -> np.ndarray:
    """Read a method's output, which must be on the scan's grid.

    Raises
    ------
    DataError
        If it cannot be read or has another shape or affine.
    """
    output = _read(path)
    _check_shape(output.data, scan.volume, path)
    largest_difference = float(np.abs(output.affine - scan.volume.affine).max())
    if largest_difference > SAME_AFFINE_MM:
        received = f"{path}: affine differs by up to {largest_difference:.3g} mm"
        remedy = "Resample it to the scan's grid (mmh harmonize does so by default)."
        raise DataError(received, "the scan's affine", remedy)
    return output.data


def read_labels(scan: Scan, table: Literal["auto"] | TableName) -> LabelMap:
    """Read the label map of a scan.

    Raises
    ------
    DataError
        As :func:`~mmh_ray.evaluation.inputs.labels.read_label_map`.
    """
    record = scan.record
    assert record.labels_uri is not None
    corrected = scan.volume.like(scan.corrected)
    names = record.labels_names or ()
    with staged(record.labels_uri) as (path,):
        return read_label_map(
            path, corrected, scan.mask, record.sequence, table, names=names, space=record.labels_space
        )


def read_truth(folder: str, subject: str, sequence: str, session: str | None = None) -> Truth:
    """Read the truth of a subject.

    Parameters
    ----------
    session:
        If given, the noise-free image is what this session's scanner would show, not that of the unified domain.

    Raises
    ------
    DataError
        If there is no noise-free image of the sequence, or an existing map cannot be read.
    """
    stem = f"{folder.rstrip('/')}/sub-{subject}/anat/sub-{subject}"
    noisefree_stem = stem
    if session:
        noisefree_stem = f"{folder.rstrip('/')}/sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
    noisefree = _read(f"{noisefree_stem}_desc-noisefree_{sequence}.nii.gz").data
    tissues = {}
    for tissue in TISSUES:
        path = f"{stem}_label-{tissue}_probseg.nii.gz"
        if size_of(path) is not None:
            tissues[tissue] = _read(path).data
    labels = None
    if len(tissues) == len(TISSUES):
        labels = tissue_labels(np.stack([tissues[tissue] for tissue in TISSUES]))
    lesion_path = f"{stem}_label-lesion_mask.nii.gz"
    lesion = None if size_of(lesion_path) is None else _read(lesion_path).data > 0.5
    return Truth(noisefree, tissues, labels, lesion)


def scan_mask(record: ImageRecord) -> np.ndarray:
    """The brain mask of a scan, as in :func:`read_scan`.

    Raises
    ------
    DataError
        If scan or mask cannot be used.
    """
    return _read_mask(record, _read(record.uri))


def common_masks(masks: Iterable[tuple[ImageRecord, np.ndarray]]) -> dict[GridKey, np.ndarray]:
    """By sequence and shape, the voxels that are brain in every scan of that shape.

    Persons are identified from these voxels only: the outline of the brain would reveal them even if a method returned
    one template for everybody. A shape has no common mask if it occurs in a single subject, or if fewer than
    :data:`LEAST_COMMON` voxels are left.
    """
    common: dict[GridKey, np.ndarray] = {}
    subjects: dict[GridKey, set[str]] = {}
    for record, mask in masks:
        key = (record.sequence, mask.shape)
        common[key] = common.get(key, mask) & mask
        subjects.setdefault(key, set()).add(record.subject)
    usable = {}
    for key, mask in common.items():
        if len(subjects[key]) > 1 and mask.sum() >= LEAST_COMMON:
            usable[key] = mask
    return usable


def on_one_grid(a: Scan, b: Scan) -> bool:
    """Whether two scans can be compared voxel by voxel."""
    if a.volume.data.shape != b.volume.data.shape:
        return False
    return np.allclose(a.volume.affine, b.volume.affine, atol=SAME_AFFINE_MM)


def _read(place: str) -> Volume:
    """Read a volume from a path or an object store."""
    with staged(place) as (path,):
        return read_volume(path)


def _read_mask(record: ImageRecord, volume: Volume) -> np.ndarray:
    if record.mask_uri is None:
        return find_brain(volume).mask
    with staged(record.mask_uri) as (path,):
        archive_mask = read_mask(path)
    with naming_mask(record.mask_uri):
        mask, _ = on_grid_of(volume, archive_mask)
    if not mask.any():
        raise DataError(f"{record.mask_uri}: empty mask", "voxels of 1 in the brain", "Create the mask again.")
    return mask


def _check_shape(data: np.ndarray, volume: Volume, name: str) -> None:
    if data.shape != volume.data.shape:
        expected = f"the scan's {volume.data.shape}"
        raise DataError(f"{name}: shape {data.shape}", expected, "Resample it to the scan's grid.")
