"""A subject's scans of one sequence as the evaluation reads them: scan, brain mask, truth, every method's output."""

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
"""A common part of fewer voxels is left out: its features say little."""

GridKey = tuple[str, tuple[int, ...]]
"""Sequence, and shape of the voxel grid."""

StyleFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Style vector ``(D,)`` of an image, a mask ``(I, J, K)`` and their affine."""


@dataclass(frozen=True)
class Case:
    """One subject's usable images of one sequence.

    Attributes
    ----------
    records:
        What is scored.
    is_pictured:
        Whether the report shows middle slices of this subject.
    reference:
        The same person's own scan at a target site, with which the others are compared; never an input.
    """

    subject: str
    sequence: str
    records: tuple[ImageRecord, ...]
    is_pictured: bool = False
    reference: ImageRecord | None = None

    @property
    def all_records(self) -> tuple[ImageRecord, ...]:
        """What is scored, and the reference."""
        if self.reference is None:
            return self.records
        return (*self.records, self.reference)


@dataclass(frozen=True)
class ScoringSettings:
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
    sliced_methods:
        Methods whose slices the convolutional probes look at.
    common_masks:
        By sequence and shape of the grid, the voxels that are brain in everybody (:func:`common_masks`).
    style:
        Style vector ``(D,)`` of an image ``(I, J, K)``, its brain and affine.
    styled_methods:
        Methods whose style vectors are computed.
    target_cohorts:
        What is known of a target site, by sequence; empty where no target is asked for.
    label_table:
        By which table label maps are read, as ``evaluate.label_table`` says.
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
    """What a simulated archive knows of a subject; None where it does not say.

    Attributes
    ----------
    noisefree:
        ``(I, J, K)`` noise-free image of the sequence.
    tissues:
        ``(I, J, K)`` share of each tissue, 0 to 1, by its name.
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
        The tissues that somebody drew in the scan, if there is a usable label map.
    """

    record: ImageRecord
    volume: Volume
    mask: np.ndarray
    corrected: np.ndarray
    label_map: LabelMap | None = None


def read_scan(record: ImageRecord, iterations: tuple[int, ...], truth: Truth | None = None) -> Scan:
    """Read a scan and its mask, estimated where the archive has none, and correct its bias field.

    Raises
    ------
    DataError
        If scan or mask cannot be used, or the truth lies on another grid.
    """
    volume = _read(record.uri)
    mask = _read_mask(record, volume)
    if truth is not None:
        _check_shape(truth.noisefree, volume, f"truth of {record.image_id}")
    corrected = correct_bias(volume.data, mask, volume.spacing, iterations)
    return Scan(record, volume, mask, corrected)


def read_output(path: str, scan: Scan) -> np.ndarray:
    """A method's output on the scan's grid.

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


def read_lesion(path: str, scan: Scan) -> np.ndarray:
    """A lesion mask on the scan's grid; DataError where it lies on another or cannot be read."""
    return read_output(path, scan) > 0.5


def read_labels(scan: Scan, table: Literal["auto"] | TableName) -> LabelMap:
    """The tissues that somebody drew in a scan, from the label map that its record names.

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
    """The truth of a subject.

    Parameters
    ----------
    session:
        Of a scan: the noise-free image is the one that its scanner would show, not the one of the unified domain.

    Raises
    ------
    DataError
        If there is no noise-free image of the sequence, or a map that is there cannot be read.
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
    """The brain of a scan as :func:`read_scan` gives it.

    Raises
    ------
    DataError
        If scan or mask cannot be used.
    """
    return _read_mask(record, _read(record.uri))


def common_masks(masks: Iterable[tuple[ImageRecord, np.ndarray]]) -> dict[GridKey, np.ndarray]:
    """By sequence and shape, the voxels that are brain in every scan of that shape: a part that names no person.

    A method that gives everybody one picture must not be told apart by the outline of the brain. So people are looked
    for in the common part alone. A shape has no common part if it is of a single subject, or if fewer than
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
    """A volume from a path, or from an object store."""
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
        raise DataError(f"{record.mask_uri}: empty mask", "voxels of 1 in the brain", "Make the mask again.")
    return mask


def _check_shape(data: np.ndarray, volume: Volume, name: str) -> None:
    if data.shape != volume.data.shape:
        raise DataError(f"{name}: shape {data.shape}", f"the scan's {volume.data.shape}", "Put it on the scan's grid.")
