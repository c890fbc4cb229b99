"""What may be wrong with a scan that its template fits: spikes, a second head, wide fluid, wrapped integers, a mask that is off."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from mmh_ray.imaging.grid import box_of, to_grid
from mmh_ray.imaging.ground import border
from mmh_ray.imaging.head import foreground
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.template import template
from mmh_ray.imaging.volume import Volume

_SPIKE = 0.5
"""Unit intensity by which a spike exceeds the brightest of its neighbours, or falls below the darkest."""
_COARSE_MM = 4.0
"""Spacing at which heads are told apart."""
_BRIDGE_MM = 8.0
"""Half the width of what may join two heads: noses, ears, the phase-encoding ghost between them."""
_FLUID = 0.5
"""Way from grey matter to fluid from which a voxel counts as fluid."""
_ENDS = 0.15
"""Part of a scan's range that counts as its upper or its lower end."""
_LEAST_STEPS = 0.5
"""Such steps for each voxel at the end that has fewer of them, from which integers ran over."""
_PILED = 0.25
"""Share of the upper end that lies at the very highest value where a scan is saturated: what ran over left no pile there."""


def spikes(unit: np.ndarray, brain: np.ndarray) -> int:
    """Voxels of the brain that stand alone far above, or far below, all their 26 neighbours.

    Parameters
    ----------
    unit:
        ``(I, J, K)`` the scan, unit intensity.
    brain:
        ``(I, J, K)`` bool.
    """
    box = box_of(brain, margin=1)
    data, inside = unit[box], brain[box]
    around = np.ones((3, 3, 3), bool)
    around[1, 1, 1] = False
    suspects = _stand_out(data) & inside
    suspects[:1] = suspects[-1:] = False
    count = 0
    for place in np.argwhere(suspects):
        near = data[tuple(slice(max(0, index - 1), index + 2) for index in place)]
        if near.shape == (3, 3, 3):
            others = near[around]
            value = data[tuple(place)]
            count += bool(value > others.max() + _SPIKE or value < others.min() - _SPIKE)
    return count


def _stand_out(data: np.ndarray) -> np.ndarray:
    """Voxels that differ from both neighbours along the first axis by more than a spike does, in one direction."""
    steps = np.diff(data, axis=0)
    found = np.zeros(data.shape, bool)
    found[1:-1] = (steps[:-1] > _SPIKE) & (steps[1:] < -_SPIKE)
    found[1:-1] |= (steps[:-1] < -_SPIKE) & (steps[1:] > _SPIKE)
    return found


def second_head(volume: Volume) -> float:
    """Volume of the second largest part of what the scan shows, as a share of the largest: near 1 where two heads lie side by side.

    Parameters
    ----------
    volume:
        The scan on dark ground, 0 where there is no signal.
    """
    steps = [max(1, round(_COARSE_MM / size)) for size in volume.spacing]
    coarse = tuple(slice(None, None, step) for step in steps)
    sizes = np.array([size * step for size, step in zip(volume.spacing, steps, strict=True)])
    shown = ndimage.binary_fill_holes(foreground(volume)[coarse])
    depth = ndimage.distance_transform_edt(np.pad(shown, 1), sampling=sizes)[1:-1, 1:-1, 1:-1]
    labels, count = ndimage.label(depth > _BRIDGE_MM)
    if count < 2:
        return 0.0
    second, first = np.sort(np.bincount(labels.ravel())[1:])[-2:]
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
        Whether fluid is brighter than that; it is then as bright as the brightest of the brain, else as dark as the darkest.
    """
    fluid = float(np.percentile(image[brain], 99 if bright else 1))
    if (fluid > grey) != bright or fluid == grey:
        return 0.0
    smooth = ndimage.gaussian_filter(image, 0.7)
    is_fluid = brain & ((smooth - grey) / (fluid - grey) > _FLUID)
    return float(ndimage.distance_transform_edt(np.pad(is_fluid, 1)).max() * spacing_mm)


def wrapped(data: np.ndarray, fill: tuple[float, ...] = ()) -> int:
    """Steps between neighbours from the top of a scan's range to its bottom, as integers make that ran over; 0 where they are no more
    than bright edges.

    Tissue that is too bright for the integers of a file starts anew from their other end: dark voxels lie within bright ones, and most
    of those that are fewer have such a neighbour. Noise that falls below zero ends at the top: bright voxels stand alone in the dark.
    Elsewhere bright tissue fades before it ends, or is piled up where it is saturated. The air around a head proves nothing: fluid may
    lie beside it.

    Parameters
    ----------
    data:
        ``(I, J, K)`` the scan as it was read.
    fill:
        Values that mean nothing.
    """
    measured = np.ones(data.shape, bool)
    for value in fill:
        measured &= data != np.float32(value)
    if not measured.any():
        return 0
    low, high = float(data[measured].min()), float(data[measured].max())
    top = measured & (data > high - _ENDS * (high - low))
    if int((data[top] == high).sum()) > _PILED * int(top.sum()):
        return 0
    bottom = measured & (data < low + _ENDS * (high - low))
    between = ~(top | bottom)
    alone = top & ~_beside(between) & ~_beside(top)
    dark = bottom & ~_open_to_faces(bottom)
    steps = sum(int((one & other).sum()) for one, other in _shifted(top, dark))
    fewer = min(int(top.sum()), int(dark.sum()))
    return int(alone.sum()) + (steps if steps >= _LEAST_STEPS * fewer else 0)


def _shifted(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The two regions shifted against each other by a voxel, along every axis both ways."""
    for axis in range(3):
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis] = slice(1, None)
        behind[axis] = slice(None, -1)
        yield first[tuple(ahead)], second[tuple(behind)]
        yield first[tuple(behind)], second[tuple(ahead)]


def _beside(region: np.ndarray) -> np.ndarray:
    """Voxels beside a voxel of the region."""
    faces = ndimage.generate_binary_structure(3, 1)
    faces[1, 1, 1] = False
    return ndimage.binary_dilation(region, faces)


def _open_to_faces(region: np.ndarray) -> np.ndarray:
    """The part of a region that reaches the faces of the volume."""
    labels, _ = ndimage.label(region)
    reaching = np.unique(border(labels))
    return np.isin(labels, reaching[reaching > 0])


def mask_offset(volume: Volume, brain: np.ndarray, registration: Registration) -> float:
    """Distance in mm of the middle of a brain mask from that of the template's brain, as far as the scan shows it.

    The registration followed the tissues inside the mask. Where the mask lies beside the brain, the two disagree.
    """
    known = template()
    laid = to_grid(known.brain.astype(np.float32), registration.matrix @ known.affine, volume.affine, brain.shape) > 0.5
    if not laid.any() or not brain.any():
        return 0.0
    apart = np.argwhere(laid).mean(axis=0) - np.argwhere(brain).mean(axis=0)
    return float(np.linalg.norm(volume.affine[:3, :3] @ apart))
