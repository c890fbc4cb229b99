"""Finds and reads label maps of whole heads in FreeSurfer's numbering, and crops them to the head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import nibabel.processing
import numpy as np
from scipy import ndimage

from mmh_ray.errors import DataError
from mmh_ray.imaging.grid import box_of
from mmh_ray.simulation.tissues import AIR, BRAIN, FLUID, SOFT, freesurfer_channels

PULL_MM = 4
"""Voxel edge of :attr:`LabelMap.pull`."""
_VENTRICLES = (4, 5, 14, 43, 44)
"""FreeSurfer's numbers of the structures that are larger where ventricles are wide."""
_CANAL_MM = 9
"""Fluid farther than this from brain tissue lies in the spinal canal."""


@dataclass(frozen=True)
class LabelMap:
    """A head at 1 mm, RAS axes.

    Attributes
    ----------
    channels:
        ``(I, J, K)`` uint8 tissue channel; :data:`AIR` where there is no signal.
    centre:
        ``(3,)`` voxel in the middle of the brain.
    pull:
        ``(3, i, j, k)`` float32, at 4 mm: direction towards the ventricles.
    """

    channels: np.ndarray
    centre: np.ndarray
    pull: np.ndarray


def label_maps_in(folder: str | Path) -> tuple[str, ...]:
    """Paths of the label maps ``*_dseg.nii[.gz]`` in a folder, sorted by name.

    Raises
    ------
    DataError
        If there are fewer than two: validation needs other people than training.
    """
    paths = sorted(str(path) for path in Path(folder).glob("*_dseg.nii*"))
    if len(paths) < 2:
        remedy = (
            "Set simulation.label_maps to a folder of whole-head label maps in FreeSurfer's numbering, or leave it out."
        )
        raise DataError(f"{folder}: {len(paths)} files *_dseg.nii.gz", "2 label maps or more", remedy)
    return tuple(paths)


@lru_cache(maxsize=32)
def read_label_map(path: str) -> LabelMap:
    """Read a map in FreeSurfer's numbering (see :mod:`mmh_ray.simulation.tissues`) and crop it to the head."""
    image = nib.as_closest_canonical(nib.load(path))
    spacing_mm = image.header.get_zooms()[:3]
    if not np.allclose(spacing_mm, 1.0, atol=0.01):
        image = nib.processing.resample_to_output(image, (1.0, 1.0, 1.0), order=0)
    labels = np.asarray(image.dataobj).astype(np.int64)
    in_table = np.clip(labels, 0, 65535)
    channels = freesurfer_channels()[in_table].astype(np.uint8)
    head = _head_box(channels)
    channels = channels[head]
    channels[_spinal(channels)] = SOFT
    brain = box_of(np.isin(channels, BRAIN))
    centre = [(span.start + span.stop - 1) / 2 for span in brain]
    return LabelMap(channels, np.array(centre), _ventricle_pull(labels[head]))


def _head_box(channels: np.ndarray) -> tuple[slice, ...]:
    """The box of everything that is not air, with a margin of 4 mm; computed on every fourth voxel."""
    is_head = channels != AIR
    coarse_box = box_of(ndimage.zoom(is_head, 0.25, order=0))
    box = []
    for span in coarse_box:
        first = max(0, 4 * span.start - 4)
        past_last = 4 * span.stop + 4
        box.append(slice(first, past_last))
    return tuple(box)


def _spinal(channels: np.ndarray) -> np.ndarray:
    """Fluid far from any brain tissue, ``(I, J, K)`` bool: the spinal canal, which is not part of a brain mask."""
    coarse = channels[::2, ::2, ::2]
    solid = [channel for channel in BRAIN if channel != FLUID]
    tissue = np.isin(coarse, solid)
    distance_mm = 2 * ndimage.distance_transform_edt(~tissue)
    far = distance_mm > _CANAL_MM
    for axis in range(3):
        far = np.repeat(far, 2, axis=axis)
    same_size = tuple(slice(length) for length in channels.shape)
    return (channels == FLUID) & far[same_size]


def _ventricle_pull(labels: np.ndarray) -> np.ndarray:
    """:attr:`LabelMap.pull`: gradient of the smoothed ventricles, at most 1."""
    ventricles = np.isin(labels, _VENTRICLES).astype(np.float32)
    smooth = ndimage.gaussian_filter(ventricles, 6.0)
    coarse = smooth[::PULL_MM, ::PULL_MM, ::PULL_MM]
    pull = np.stack(np.gradient(coarse)).astype(np.float32)
    steepest = float(np.abs(pull).max())
    pull /= max(steepest, 1e-6)
    return pull
