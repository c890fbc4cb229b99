"""Grids: where the working grid lies, and resampling to it and back through the affines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from mmh_ray.config import GridConfig

_TRUNCATE = 4.0
"""Standard deviations at which a Gaussian kernel ends."""


def working_affine(
    affine: np.ndarray, mask: np.ndarray, grid: GridConfig, axes: np.ndarray | None = None
) -> np.ndarray:
    """Affine of the working grid, centred on the mask's bounding box.

    Parameters
    ----------
    affine, mask:
        ``(4, 4)`` and ``(I, J, K)`` bool: the scan's voxels to millimetres, and its brain.
    axes:
        ``(3, 3)`` rotation whose columns are the grid's axes in the scan's millimetres. None: the scan's world axes,
        and then the centre moves by at most half a voxel of the scan so that the grid's first voxel lies on one of the
        scan's: a scan of the grid's own spacing and axes is then only cropped or padded, not blurred by interpolation.
    """
    half = grid.spacing_mm * (np.array(grid.shape) - 1) / 2
    working = np.diag([grid.spacing_mm, grid.spacing_mm, grid.spacing_mm, 1.0])
    if axes is not None:
        places_mm = apply_affine(affine, np.argwhere(mask))
        along_axes = places_mm @ axes
        low = along_axes.min(axis=0)
        high = along_axes.max(axis=0)
        middle = (low + high) / 2
        working[:3, :3] = grid.spacing_mm * axes
        working[:3, 3] = axes @ (middle - half)
        return working
    centre_voxel = [(span.start + span.stop - 1) / 2 for span in box_of(mask)]
    centre = affine @ np.array([*centre_voxel, 1.0])
    working[:3, 3] = centre[:3] - half
    to_voxels = np.linalg.inv(affine)
    first_voxel = np.round((to_voxels @ working[:, 3])[:3])
    first_place = affine @ [*first_voxel, 1.0]
    working[:3, 3] = first_place[:3]
    return working


def to_grid(
    data: np.ndarray, affine: np.ndarray, target_affine: np.ndarray, shape: tuple[int, ...], order: int = 1
) -> np.ndarray:
    """Resample ``(I, J, K)`` data to another grid: anti-aliased where the target is coarser, zero outside; linear (1)
    or cubic (3)."""
    step = np.linalg.inv(affine) @ target_affine
    size = np.linalg.norm(step[:3, :3], axis=1)  # source voxels crossed by one target voxel, per source axis
    excess = np.maximum(size**2 - 1, 0)
    sigma = 0.4 * np.sqrt(excess)
    source = data.astype(np.float32)
    if sigma.any():
        # A cubic spline depends on the whole volume, linear interpolation on what is beside the target's voxels alone.
        box = _box_under(step, shape, source.shape) if order == 1 else tuple(slice(0, n) for n in source.shape)
        _blur(source, sigma, box)
    return ndimage.affine_transform(source, step, output_shape=tuple(shape), order=order, mode="grid-constant")


def _box_under(step: np.ndarray, target_shape: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The box of a volume of some shape in which the voxels of a target grid lie, and two voxels more on every side."""
    ends = [(0, length - 1) for length in target_shape]
    corners = np.array(list(itertools.product(*ends)))
    places = corners @ step[:3, :3].T + step[:3, 3]
    first = np.floor(places.min(axis=0)).astype(int) - 2
    past_last = np.ceil(places.max(axis=0)).astype(int) + 3
    box = []
    for axis, length in enumerate(shape):
        start = int(np.clip(first[axis], 0, length))
        stop = int(np.clip(past_last[axis], start, length))
        box.append(slice(start, stop))
    return tuple(box)


def _blur(data: np.ndarray, sigma: np.ndarray, box: tuple[slice, ...]) -> None:
    """Gaussian smoothing of a volume in place, inside a box alone: the same values as if all of it were smoothed."""
    wider = []
    inner = []
    for span, width, length in zip(box, sigma, data.shape, strict=True):
        reach = math.ceil(_TRUNCATE * width)
        start = max(0, span.start - reach)
        stop = min(length, span.stop + reach)
        wider.append(slice(start, stop))
        inner.append(slice(span.start - start, span.stop - start))
    surroundings = data[tuple(wider)]
    if surroundings.size:
        smooth = ndimage.gaussian_filter(surroundings, sigma, truncate=_TRUNCATE)
        data[box] = smooth[tuple(inner)]


def from_grid(data: np.ndarray, affine: np.ndarray, native_affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample working-grid data to a native grid: linear, continued outside by its nearest voxel."""
    step = np.linalg.inv(affine) @ native_affine
    source = data.astype(np.float32)
    return ndimage.affine_transform(source, step, output_shape=tuple(shape), order=1, mode="nearest")


def cut_out(data: np.ndarray, affine: np.ndarray, target_affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Data on another grid of the same spacing and axes, whole voxels away: cropped and padded with zeros, never
    interpolated."""
    to_voxels = np.linalg.inv(affine)
    first_place = to_voxels @ target_affine[:, 3]
    first_voxel = np.round(first_place)[:3].astype(int)
    source = []
    target = []
    for start, length, target_length in zip(first_voxel, data.shape, shape, strict=True):
        low = max(0, start)
        high = max(low, min(length, start + target_length))
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    cut = np.zeros(shape, data.dtype)
    cut[tuple(target)] = data[tuple(source)]
    return cut


def share_held(
    mask: np.ndarray,
    affine: np.ndarray,
    target_affine: np.ndarray,
    shape: tuple[int, ...],
    holes: np.ndarray | None = None,
) -> float:
    """Part of the voxels of a mask ``(I, J, K)`` bool whose centres another grid holds, outside the ``holes`` of that
    grid."""
    step = np.linalg.inv(target_affine) @ affine
    voxels = apply_affine(step, np.argwhere(mask))
    after_first = voxels > -0.5
    before_last = voxels < np.array(shape) - 0.5
    held = (after_first & before_last).all(axis=1)
    if holes is not None:
        places = np.round(voxels[held]).astype(int)
        held[held] = ~holes[tuple(places.T)]
    return float(held.mean())


def box_of(mask: np.ndarray, margin: int | Sequence[int] = 0) -> tuple[slice, ...]:
    """The smallest box of an array that holds the mask and ``margin`` voxels more on every side, where there are some.

    Parameters
    ----------
    mask:
        Of any number of axes; one voxel or more is not zero.
    margin:
        One number, or one for each axis.
    """
    margins = np.broadcast_to(margin, mask.ndim).tolist()
    axes = range(mask.ndim)
    box = []
    for axis in axes:
        other_axes = tuple(other for other in axes if other != axis)
        occupied = np.flatnonzero(mask.any(axis=other_axes))
        first = int(occupied[0]) - margins[axis]
        past_last = int(occupied[-1]) + 1 + margins[axis]
        span = slice(max(0, first), min(mask.shape[axis], past_last))
        box.append(span)
    return tuple(box)
