"""Detects faults in scans that the template fits: spikes, two heads, wide fluid, integer overflow, misplaced masks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from mmh_ray.imaging.borders import reaching_faces
from mmh_ray.imaging.grid import box_of, to_grid
from mmh_ray.imaging.head import foreground
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.template import template
from mmh_ray.imaging.volume import Volume

_SPIKE = 0.5
"""Unit intensity by which a spike is above its brightest neighbour or below its darkest."""
_COARSE_MM = 4.0
"""Spacing at which heads are separated."""
_BRIDGE_MM = 8.0
"""Half the width of structures that may join two heads: noses, ears, a phase-encoding ghost between them."""
_FLUID = 0.5
"""Least position between grey matter (0) and fluid (1) at which a voxel counts as fluid."""
_ENDS = 0.15
"""Part of a scan's range that counts as its upper or its lower end."""
_LEAST_STEPS = 0.5
"""Least number of steps per voxel of the smaller end for them to count as overflow."""
_PILED = 0.25
"""A scan is saturated, without overflow, if more than this share of its upper end has exactly the highest value."""


def spikes(unit: np.ndarray, brain: np.ndarray) -> int:
    """Number of voxels in the brain that are far above, or far below, all their 26 neighbours.

    Parameters
    ----------
    unit:
        ``(I, J, K)`` the scan, unit intensity.
    brain:
        ``(I, J, K)`` bool.
    """
    box = box_of(brain, margin=1)
    data = unit[box]
    suspects = _differing_from_neighbours(data) & brain[box]
    without_middle = np.ones((3, 3, 3), bool)
    without_middle[1, 1, 1] = False
    count = 0
    for place in np.argwhere(suspects):
        block = data[tuple(slice(max(0, index - 1), index + 2) for index in place)]
        if block.shape != (3, 3, 3):
            continue
        neighbours = block[without_middle]
        value = data[tuple(place)]
        is_above = value > neighbours.max() + _SPIKE
        is_below = value < neighbours.min() - _SPIKE
        count += int(is_above or is_below)
    return count


def _differing_from_neighbours(data: np.ndarray) -> np.ndarray:
    """Voxels that are above both, or below both, neighbours along the first axis by more than :data:`_SPIKE`."""
    steps = np.diff(data, axis=0)
    rises = steps > _SPIKE
    falls = steps < -_SPIKE
    is_peak = rises[:-1] & falls[1:]
    is_pit = falls[:-1] & rises[1:]
    differs = np.zeros(data.shape, bool)
    differs[1:-1] = is_peak | is_pit
    return differs


def second_head(volume: Volume) -> float:
    """Volume of the second largest part of the foreground, relative to the largest: near 1 if there are two heads.

    Parameters
    ----------
    volume:
        The scan; 0 is zero signal.
    """
    strides = [max(1, round(_COARSE_MM / size)) for size in volume.spacing]
    every_stride = tuple(slice(None, None, stride) for stride in strides)
    coarse_spacing = np.array(volume.spacing) * strides
    coarse = foreground(volume)[every_stride]
    shown = ndimage.binary_fill_holes(coarse)
    padded = np.pad(shown, 1)  # the faces of the volume count as a border
    depth_mm = ndimage.distance_transform_edt(padded, sampling=coarse_spacing)
    depth_mm = depth_mm[1:-1, 1:-1, 1:-1]
    parts, count = ndimage.label(depth_mm > _BRIDGE_MM)
    if count < 2:
        return 0.0
    voxels_of_part = np.bincount(parts.ravel())[1:]
    second, first = np.sort(voxels_of_part)[-2:]
    return float(second / first)


def widest_fluid(image: np.ndarray, brain: np.ndarray, spacing_mm: float, grey: float, bright: bool) -> float:
    """Radius in mm of the largest ball of fluid in the brain.

    Parameters
    ----------
    image:
        ``(X, Y, Z)`` the scan without its bias field.
    brain:
        ``(X, Y, Z)`` bool.
    grey:
        Intensity of grey matter.
    bright:
        Whether fluid is brighter than grey matter. It is assumed to be the brightest tissue if so, else the darkest.
    """
    percent = 99 if bright else 1
    fluid = float(np.percentile(image[brain], percent))
    if (fluid > grey) != bright or fluid == grey:
        return 0.0
    smooth = ndimage.gaussian_filter(image, 0.7)
    share_of_fluid = (smooth - grey) / (fluid - grey)
    is_fluid = brain & (share_of_fluid > _FLUID)
    depth = ndimage.distance_transform_edt(np.pad(is_fluid, 1))
    return float(depth.max() * spacing_mm)


def wrapped(data: np.ndarray, fill: tuple[float, ...] = ()) -> int:
    """Number of steps between neighbours from the top of a scan's range to its bottom; 0 if they may be edges.

    Integer overflow causes such steps in two ways. Tissue that is too bright for the file's integers wraps to the dark
    end: dark voxels lie within bright ones, and most voxels of the rarer kind have a neighbour of the other. Noise
    below zero wraps to the bright end: single bright voxels lie in the dark. Without overflow, bright tissue fades at
    its border, or many voxels have the highest value (saturation). The air around a head is not counted, because fluid
    may be next to it.

    Parameters
    ----------
    data:
        ``(I, J, K)`` the scan as stored in the file.
    fill:
        Values to ignore.
    """
    measured = np.ones(data.shape, bool)
    for value in fill:
        measured &= data != np.float32(value)
    if not measured.any():
        return 0
    measured_values = data[measured]
    low = float(measured_values.min())
    high = float(measured_values.max())
    end = _ENDS * (high - low)
    top = measured & (data > high - end)
    at_highest_value = int((data[top] == high).sum())
    if at_highest_value > _PILED * int(top.sum()):  # saturated
        return 0
    bottom = measured & (data < low + end)
    between = ~(top | bottom)
    isolated_top = top & ~_beside(between) & ~_beside(top)
    enclosed_bottom = bottom & ~reaching_faces(bottom)
    steps = 0
    for shifted_top, shifted_bottom in _shifted(top, enclosed_bottom):
        steps += int((shifted_top & shifted_bottom).sum())
    fewer = min(int(top.sum()), int(enclosed_bottom.sum()))
    if steps < _LEAST_STEPS * fewer:
        steps = 0
    return int(isolated_top.sum()) + steps


def _shifted(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield views of the two regions shifted against each other by one voxel, in both directions of every axis."""
    for axis in range(3):
        first_along = np.moveaxis(first, axis, 0)
        second_along = np.moveaxis(second, axis, 0)
        yield first_along[1:], second_along[:-1]
        yield first_along[:-1], second_along[1:]


def _beside(region: np.ndarray) -> np.ndarray:
    """Voxels with a face neighbour in the region."""
    beside = np.zeros_like(region)
    for view, neighbours in _shifted(beside, region):
        view |= neighbours
    return beside


def mask_offset(volume: Volume, brain: np.ndarray, registration: Registration) -> float:
    """Distance in mm between the middle of a brain mask and that of the template's brain inside the field of view.

    The registration follows the tissues inside the mask. If the mask is misplaced, the two disagree.
    """
    icbm = template()
    icbm_share = icbm.brain.astype(np.float32)
    template_affine = registration.matrix @ icbm.affine
    template_share = to_grid(icbm_share, template_affine, volume.affine, brain.shape)
    template_brain = template_share > 0.5
    if not template_brain.any() or not brain.any():
        return 0.0
    template_middle = np.argwhere(template_brain).mean(axis=0)
    brain_middle = np.argwhere(brain).mean(axis=0)
    offset_mm = volume.affine[:3, :3] @ (template_middle - brain_middle)
    return float(np.linalg.norm(offset_mm))
