"""Places the working grid on a scan, and resamples to it and back through the affines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from mmh_ray.config import GridConfig

_TRUNCATE = 4.0
"""Standard deviations at which a Gaussian kernel is cut off."""


def working_affine(
    affine: np.ndarray, mask: np.ndarray, grid: GridConfig, axes: np.ndarray | None = None
) -> np.ndarray:
    """Affine of the working grid, centred on the mask's bounding box.

    Parameters
    ----------
    affine, mask:
        ``(4, 4)`` and ``(I, J, K)`` bool: the scan's voxels to millimetres, and its brain.
    axes:
        ``(3, 3)`` rotation whose columns are the grid's axes in the scan's millimetres; None for the scan's world axes.
        In that case the centre moves by at most half a voxel of the scan, so that the grid's first voxel coincides with
        one of the scan. So a scan with the grid's spacing and axes is only cropped or padded, not interpolated.
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
    """Resample ``(I, J, K)`` data to another grid: anti-aliased if the target is coarser, zero outside.

    ``order`` is 1 for linear and 3 for cubic interpolation.
    """
    step = np.linalg.inv(affine) @ target_affine
    size = np.linalg.norm(step[:3, :3], axis=1)  # source voxels crossed by one target voxel, per source axis
    excess = np.maximum(size**2 - 1, 0)
    sigma = 0.4 * np.sqrt(excess)
    source = data.astype(np.float32)
    if sigma.any():
        # A cubic spline depends on the whole volume; linear interpolation only on voxels next to the target's.
        box = _box_under(step, shape, source.shape) if order == 1 else tuple(slice(0, n) for n in source.shape)
        _blur(source, sigma, box)
    return ndimage.affine_transform(source, step, output_shape=tuple(shape), order=order, mode="grid-constant")


def _box_under(step: np.ndarray, target_shape: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The box of a volume that contains the voxels of a target grid, with two more voxels on every side."""
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
    """Smooth the box of a volume in place; the values are the same as if the whole volume were smoothed."""
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
    """Resample working-grid data to a native grid: linear; outside, the nearest voxel is repeated."""
    step = np.linalg.inv(affine) @ native_affine
    source = data.astype(np.float32)
    return ndimage.affine_transform(source, step, output_shape=tuple(shape), order=1, mode="nearest")


def cut_out(data: np.ndarray, affine: np.ndarray, target_affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Crop and zero-pad data to another grid of the same spacing and axes, a whole number of voxels away."""
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
    """Part of the voxels of a mask ``(I, J, K)`` bool whose centres lie in another grid and outside its ``holes``."""
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
    """The smallest box that contains the mask, plus ``margin`` voxels on every side as far as the array extends.

    Parameters
    ----------
    mask:
        An array with any number of axes; at least one voxel is not zero.
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
