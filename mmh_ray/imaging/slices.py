"""Cuts a volume into slabs of one fixed shape along three planes, and assembles them again.

Shapes: ``X Y Z`` the working grid (R, A, S); ``N`` slices along a plane's normal; ``K`` slices of a slab; ``H W`` a
padded slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

PLANES = ("axial", "coronal", "sagittal")
"""Order of the planes; its index is the model's plane label."""

NORMAL = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Working-grid axis along which a plane's slices are stacked."""

AXES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 2, 1)}
"""Working-grid axes of a plane: normal, height and width of its slices."""


def slice_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of the smallest rectangle that fits the slices of every plane of a volume ``X Y Z``."""
    heights = [shape[height_axis] for _, height_axis, _ in AXES.values()]
    widths = [shape[width_axis] for _, _, width_axis in AXES.values()]
    return max(heights), max(widths)


def along(volume: np.ndarray, plane: str) -> np.ndarray:
    """View of ``(X, Y, Z)`` as ``(N, height, width)`` slices of the plane.

    The front-to-back axis, a brain's longest, is never the height. So one rectangle fits all planes with little
    padding.
    """
    return volume.transpose(AXES[plane])


def take_slabs(volume: np.ndarray, plane: str, indices: Sequence[int], slab: int, size: tuple[int, int]) -> np.ndarray:
    """Slabs of ``slab`` neighbouring slices around ``indices``, ``(n, K, H, W)``; zero beyond the volume."""
    slices = along(volume, plane)
    last = len(slices) - 1
    half = slab // 2
    offsets = np.arange(-half, half + 1)
    centres = np.asarray(indices)[:, None]
    neighbours = centres + offsets
    inside = (neighbours >= 0) & (neighbours <= last)
    existing = np.clip(neighbours, 0, last)
    taken = slices[existing] * inside[..., None, None]
    return pad_slices(taken, size)


def pad_slices(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad ``(..., height, width)`` with zeros to ``(..., H, W)``, centred."""
    height, width = size
    more_rows = height - images.shape[-2]
    more_columns = width - images.shape[-1]
    top = more_rows // 2
    left = more_columns // 2
    bottom = more_rows - top
    right = more_columns - left
    padding = [(0, 0)] * (images.ndim - 2)
    padding.append((top, bottom))
    padding.append((left, right))
    return np.pad(images, padding)


def crop_slices(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Undo :func:`pad_slices`."""
    padded_height, padded_width = images.shape[-2:]
    top = (padded_height - height) // 2
    left = (padded_width - width) // 2
    bottom = top + height
    right = left + width
    return images[..., top:bottom, left:right]


def assemble(slabs: np.ndarray, plane: str, indices: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Mean of overlapping slabs ``(n, K, H, W)`` as a volume ``(X, Y, Z)``; voxels that no slab covers are zero."""
    total = np.zeros(shape, np.float32)
    count = np.zeros(shape, np.float32)
    total_slices = along(total, plane)  # views: adding to them changes the volumes
    count_slices = along(count, plane)
    height, width = total_slices.shape[1:]
    half = slabs.shape[1] // 2
    for slab, index in zip(crop_slices(slabs, height, width), indices, strict=True):
        for position, image in enumerate(slab, start=index - half):
            if 0 <= position < len(total_slices):
                total_slices[position] += image
                count_slices[position] += 1
    return total / np.maximum(count, 1)


def middle_slice(data: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Axial slice through the middle of the brain, anterior up, the subject's left on the left; 0 outside the mask."""
    orientation = nib.orientations.io_orientation(affine)
    masked = np.where(mask, data, 0)
    brain = nib.orientations.apply_orientation(masked, orientation)
    inside = nib.orientations.apply_orientation(mask, orientation)
    heights = np.flatnonzero(inside.any(axis=(0, 1)))
    middle = (heights[0] + heights[-1]) // 2
    return np.rot90(brain[:, :, middle])
