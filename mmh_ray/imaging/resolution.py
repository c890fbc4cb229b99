"""Measures the resolution of a scan along each of its axes, for the sidecar and for the style encoder."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from mmh_ray.imaging.grid import box_of
from mmh_ray.imaging.slices import NORMAL, PLANES
from mmh_ray.imaging.volume import Volume

COARSE = 1.3
"""Least ratio of the coarsest axis to a finer one for a scan to count as thick-sliced, whatever its voxels."""


def sharp_planes(affine: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Planes in which a scan's slices are sharp, ``(3,)`` bool in the order of :data:`PLANES`.

    All planes, unless the scan has thick slices: its longest voxel edge is at least :data:`COARSE` times the next one.
    Then only the plane of its own slices. Edges shorter than ``pixel_mm``, the pixel size in use, count as that.
    """
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    sizes = np.maximum(voxel_mm, pixel_mm)
    _, middle, coarsest = np.sort(sizes)
    if coarsest < COARSE * middle:
        return np.ones(len(PLANES), bool)
    orientation = nib.orientations.io_orientation(affine)
    coarse_axis = np.argmax(sizes)
    normal = orientation[coarse_axis, 0]
    return np.array([NORMAL[plane] == normal for plane in PLANES])


def fwhm_mm(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    """Full width at half maximum along each axis in mm, as if the image were white noise under a Gaussian point spread.

    ``d √(−2 ln 2 / ln(1 − var(Δ) / 2 var(x)))`` with Δ the differences of neighbours d mm apart (Forman et al., MRM
    1995). 0 for white noise. Anatomy contributes to it, so only comparisons between axes or images are meaningful: a
    brain itself is about equally smooth along all three axes.
    """
    variance = float(image[mask].var(dtype=np.float64))
    precise = image.astype(np.float64)
    widths = []
    for axis, size in enumerate(spacing):
        has_previous = np.delete(mask, 0, axis=axis)
        has_next = np.delete(mask, -1, axis=axis)
        steps = np.diff(precise, axis=axis)[has_previous & has_next]
        correlation = 0.0
        if steps.size and variance > 0:
            mean_square = float((steps**2).mean())
            correlation = 1 - mean_square / (2 * variance)
        width = 0.0
        if 0 < correlation < 1:
            in_steps = np.sqrt(-2 * np.log(2) / np.log(correlation))
            width = size * float(in_steps)
        widths.append(width)
    along_i, along_j, along_k = widths
    return along_i, along_j, along_k


def describe(volume: Volume, mask: np.ndarray) -> str:
    """One line with voxel size and smoothness, and with the axis along which the scan is coarser than the others."""
    box = box_of(mask)
    widths = fwhm_mm(volume.data[box], mask[box], volume.spacing)
    sizes = " x ".join(f"{size:.3g}" for size in volume.spacing)
    smooth = " x ".join(f"{width:.3g}" for width in widths)
    line = f"resolution: voxels {sizes} mm, smoothness {smooth} mm"
    finest = min(widths)
    if finest == 0:
        return line
    ratio = max(widths) / finest
    if ratio < COARSE:
        return line
    coarse_axis = "ijk"[int(np.argmax(widths))]
    return f"{line}, {ratio:.1f} times coarser along axis {coarse_axis}: interpolated, not sharpened"
