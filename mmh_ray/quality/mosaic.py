"""Draws a small picture of a volume: three axial, one coronal and one sagittal slice through the brain."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from mmh_ray.imaging.grid import box_of
from mmh_ray.provenance import whole_file

HIGHEST = 1.1
"""Unit intensity shown as white; 0 is black."""
LONGEST = 176
"""Pixels along the longest edge of the brain's box, independent of the voxel size."""
MARGIN_MM = 5.0
QUALITY = 80
_AXIAL = (0.35, 0.5, 0.68)
"""Positions of the axial slices, as parts of the brain's height: basal ganglia in the middle, cortex above."""


def mosaic(volume: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Three axial, a coronal and a sagittal slice side by side on black.

    Anterior or superior is up; the subject's left is on the left, and in the sagittal slice anterior is on the right.
    Slices follow the voxel axes nearest to the body's and have square pixels, so a scan of 1x1x5 mm keeps its shape.
    The geometry depends only on mask and affine, so the pictures before and after harmonization match.

    Parameters
    ----------
    volume:
        ``(I, J, K)`` in unit intensity; shown from 0 to :data:`HIGHEST`.
    mask:
        ``(I, J, K)`` bool, the brain; an empty one shows the whole volume.
    affine:
        ``(4, 4)``, voxel indices to mm in RAS+.

    Returns
    -------
    ``(height, width)`` uint8.
    """
    assert volume.shape == mask.shape, (volume.shape, mask.shape)
    orientation = nib.orientations.io_orientation(affine)
    world_axes = orientation[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[world_axes] = np.linalg.norm(affine[:3, :3], axis=0)
    data = nib.orientations.apply_orientation(volume, orientation)
    inside = nib.orientations.apply_orientation(mask, orientation)
    if inside.any():
        margin = [round(MARGIN_MM / step) for step in spacing]
        data = data[box_of(inside, margin)]
    size_mm = np.array(data.shape) * spacing
    pixels = np.rint(size_mm * LONGEST / size_mm.max())
    pixels = np.maximum(1, pixels).astype(int)
    finite = np.nan_to_num(data)
    grey = np.clip(finite / HIGHEST, 0, 1)
    tiles = [_tile(grey, 2, part, pixels) for part in _AXIAL]
    tiles.append(_tile(grey, 1, 0.5, pixels))  # coronal
    tiles.append(_tile(grey, 0, 0.5, pixels))  # sagittal
    return _side_by_side(tiles)


def write_mosaic(path: str | Path, volume: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> None:
    """Write :func:`mosaic` as a JPEG of about 10 to 20 kB, whole or not at all."""
    pixels = mosaic(volume, mask, affine)
    picture = Image.fromarray(pixels)
    with whole_file(path) as partial:
        picture.save(partial, format="JPEG", quality=QUALITY, optimize=True)


def _tile(grey: np.ndarray, axis: int, part: float, pixels: np.ndarray) -> np.ndarray:
    """One slice with square pixels, ``(height, width)`` uint8."""
    length = grey.shape[axis]
    index = min(int(part * length), length - 1)
    image_slice = np.take(grey, index, axis)
    upright = np.rot90(image_slice).astype(np.float32)
    picture = Image.fromarray(upright)
    across, up = np.delete(pixels, axis)
    resized = picture.resize((across, up), Image.Resampling.BILINEAR)
    levels = np.rint(255 * np.asarray(resized))
    return levels.astype(np.uint8)


def _side_by_side(tiles: list[np.ndarray]) -> np.ndarray:
    """The tiles in a row, vertically centred on black."""
    height = max(tile.shape[0] for tile in tiles)
    padded = []
    for tile in tiles:
        gap = height - tile.shape[0]
        above = gap // 2
        padded.append(np.pad(tile, ((above, gap - above), (0, 0))))
    return np.hstack(padded)
