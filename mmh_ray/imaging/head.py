"""Finds the tissue of a scan and crops its head: foreground, neck, bounds, and helpers for masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from skimage.filters import threshold_otsu

from mmh_ray.imaging.grid import box_of, to_grid
from mmh_ray.imaging.template import GRID_MM
from mmh_ray.imaging.volume import Volume

HEAD_MM = 190.0
"""Height of the part of a head, measured from its top, that contains the brain."""


def foreground(volume: Volume) -> np.ndarray:
    """Tissue brighter than air and bone, ``(I, J, K)`` bool."""
    sigma = [1.0 / size for size in volume.spacing]
    smooth = ndimage.gaussian_filter(volume.data, sigma)
    brightest = np.percentile(smooth, 99)
    root = np.sqrt(np.clip(smooth, 0, brightest))  # balances the two classes, so that dim tissue is not lost
    return root > threshold_otsu(root)


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes_of_parts = sizes[1:]  # without the outside of the mask
    largest_label = 1 + np.argmax(sizes_of_parts)
    return labels == largest_label


def dilated(mask: np.ndarray, radius: Sequence[int]) -> np.ndarray:
    """Dilate a mask ``(I, J, K)`` bool by a box that extends ``radius`` voxels to either side along each axis.

    Ten times faster than ``ndimage.binary_dilation``, which visits the whole box around every voxel: one axis is
    processed after the other.
    """
    return _along_axes(ndimage.maximum_filter1d, mask, radius)


def eroded(mask: np.ndarray, radius: Sequence[int]) -> np.ndarray:
    """Erode a mask ``(I, J, K)`` bool by the same box; voxels beyond the volume are outside the mask."""
    return _along_axes(ndimage.minimum_filter1d, mask, radius)


def _along_axes(extreme: Callable[..., np.ndarray], mask: np.ndarray, radius: Sequence[int]) -> np.ndarray:
    """Apply a 1-D filter along each axis, with zeros beyond the volume; computed only around the mask."""
    result = np.zeros(mask.shape, bool)
    if not mask.any():
        return result
    box = box_of(mask, margin=radius)
    values = mask[box].astype(np.uint8)
    for axis, voxels in enumerate(radius):
        values = extreme(values, 2 * voxels + 1, axis, mode="constant", cval=0)
    result[box] = values.astype(bool)
    return result


def without_neck(volume: Volume, head: np.ndarray) -> tuple[np.ndarray, float]:
    """Cut off the head more than :data:`HEAD_MM` below its top; returns ``(I, J, K)`` bool and the mm cut off."""
    step_i, step_j, step_k, origin = volume.affine[2]
    length_i, length_j, length_k = head.shape
    height_i = np.arange(length_i)[:, None, None] * step_i
    height_j = np.arange(length_j)[:, None] * step_j
    height_k = np.arange(length_k) * step_k
    height = height_i + height_j + height_k + origin
    lowest, top = np.percentile(height[head], [0.5, 99.5])
    end_of_head = top - HEAD_MM
    kept = head & (height >= end_of_head)
    neck_mm = max(0.0, float(end_of_head - lowest))
    return kept, neck_mm


def bounds(volume: Volume, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of a mask without its outermost voxels, ``(3,)`` world mm each."""
    places_mm = apply_affine(volume.affine, np.argwhere(mask))
    low, high = np.percentile(places_mm, [0.5, 99.5], axis=0)
    return low, high


def upright(volume: Volume, mask: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Resample the masked scan between two corners (world mm) to the template's spacing, with world axes.

    Returns the data and the grid's affine.
    """
    affine = from_matvec(GRID_MM * np.eye(3), low)
    lengths = np.ceil((high - low) / GRID_MM) + 1
    shape = tuple(int(length) for length in lengths)
    inside = np.where(mask, volume.data, 0)
    resampled = to_grid(inside, volume.affine, affine, shape)
    return resampled, affine
