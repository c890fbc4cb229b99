"""How fine a scan really is along each of its axes: recorded, and nothing is sharpened."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from mmh_ray.imaging.slices import NORMAL, PLANES
from mmh_ray.imaging.volume import Volume

COARSE = 1.3
"""Ratio of the coarsest axis to the finest from which a scan counts as thick-sliced, stored on thin voxels or not."""


def sharp_planes(affine: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Planes ``(3,)`` bool, in the order of :data:`PLANES`, in which slices of a scan are as sharp as its voxels allow.

    All, unless its own slices are thick (their distance :data:`COARSE` times the next coarser voxel edge or more): then the one plane that
    lies along them. Edges below ``pixel_mm``, at which it is looked at, count as that.
    """
    sizes = np.maximum(np.linalg.norm(affine[:3, :3], axis=0), pixel_mm)
    _, middle, coarsest = np.sort(sizes)
    if coarsest < COARSE * middle:
        return np.ones(len(PLANES), bool)
    normal = nib.orientations.io_orientation(affine)[np.argmax(sizes), 0]
    return np.array([NORMAL[plane] == normal for plane in PLANES])


def smoothness(volume: Volume, mask: np.ndarray) -> np.ndarray:
    """Full width at half maximum of the scan's autocorrelation inside the mask, ``(3,)`` mm along its axes.

    ``FWHM = size sqrt(-2 ln 2 / ln(1 - var(difference of neighbours) / (2 var)))`` (Forman et al., MRM 1995). Anatomy takes part in it, so
    only the comparison of the axes says something: a brain is about as smooth along all three, its slices may not be.
    """
    occupied = [np.flatnonzero(mask.any(axis=tuple(set(range(3)) - {axis}))) for axis in range(3)]
    box = tuple(slice(index[0], index[-1] + 1) for index in occupied)
    data, inside = volume.data[box].astype(np.float64), mask[box]
    variance = max(float(data[inside].var()), 1e-12)
    widths = []
    for axis, size in enumerate(volume.spacing):
        ahead, behind = (np.delete(inside, end, axis=axis) for end in (0, -1))
        steps = np.diff(data, axis=axis)[ahead & behind]
        kept = 1 - (float(steps.var()) if steps.size else 0.0) / (2 * variance)
        widths.append(size * np.sqrt(-2 * np.log(2) / np.log(np.clip(kept, 1e-3, 1 - 1e-6))))
    return np.array(widths)


def describe(volume: Volume, mask: np.ndarray) -> str:
    """One line on voxel size and smoothness, and the axis along which a scan is coarser than along the others."""
    widths = smoothness(volume, mask)
    sizes, smooth = (" x ".join(f"{value:.3g}" for value in values) for values in (volume.spacing, widths))
    line = f"resolution: voxels {sizes} mm, smoothness {smooth} mm"
    ratio = max(widths) / min(widths)
    if ratio < COARSE:
        return line
    return f"{line}, {ratio:.1f} times coarser along axis {'ijk'[int(np.argmax(widths))]}: interpolated, not sharpened"
