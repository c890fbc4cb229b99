"""Finds the zero level of a scan, its fill values, and whether its skull was removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mmh_ray.imaging.borders import faces_of
from mmh_ray.imaging.fill import Fill, find_fill
from mmh_ray.imaging.head import largest
from mmh_ray.imaging.volume import Volume

_LARGEST_BRAIN_ML = 2100.0
_MOST_SHOWN = 0.6
"""Largest part of the voxels that a scan without its skull shows."""
_FLOOR_PERCENT = 0.1
_NEAR = 0.15
"""Largest distance of a darker background from the darkest of a brain, as a share of the brain's range, at which the
background is the zero of a shifted scan. A background farther away was put there."""
_MOST_DARKER = 0.01
"""Part of a scan that may be darker than its background; if more is, the background is not the zero."""
_LEAST_MEASURED = 0.05
"""Least part of the faces that must be free of fill to show a background."""
_LOOK_MM = 2.0
"""Spacing at which the outer layers of a head are examined."""
_LAYER_MM = 2.0
_OUTER_MM = 8.0
"""Depth within which the scalp lies."""
_SKULL_MM = (4.0, 16.0)
"""Depths between which the skull lies."""
_DEEP_MM = 18.0
_DARK = 0.3
"""A layer is skull if its lower quartile is below this share of the median deep inside."""
_GAP = 0.57
"""A layer is skull if its lower quartile is below this share of the brightest layer outside it."""


@dataclass(frozen=True)
class Ground:
    """The zero level of a scan, and the voxels without a signal.

    Attributes
    ----------
    floor:
        Intensity of zero signal, in the scan's units; at most 0.
    fill:
        The fill values and their voxels; None if there are none.
    shown:
        ``(I, J, K)`` bool, the brain if the skull was removed; None for a scan with its skull.
    """

    floor: float = 0.0
    fill: Fill | None = None
    shown: np.ndarray | None = None

    @property
    def holes(self) -> np.ndarray | None:
        """``(I, J, K)`` bool, the fill; None if there is none."""
        return self.fill.mask if self.fill else None

    @property
    def stripped(self) -> bool:
        """Whether the skull was removed."""
        return self.shown is not None

    def applied_to(self, volume: Volume) -> Volume:
        """Raise all voxels below the floor to the floor, and set fill (and the air of a stripped scan) to it."""
        if self.fill is None and self.floor == 0 and volume.data.min() >= 0:
            return volume
        data = np.maximum(volume.data, np.float32(self.floor))
        if self.holes is not None:
            data[self.holes] = self.floor
        if self.shown is not None and self.floor < 0:
            data[~self.shown] = self.floor
        return volume.like(data)


def find_ground(volume: Volume) -> Ground:
    """Find the floor of a scan, its fill, and its brain if that is all it shows.

    Scans that were shifted or are stored as standard scores go below zero. Their floor is the lowest 0.1 % of the
    voxels that are neither fill nor background, or a background just below that. The background of a stripped scan,
    often 0 among standard scores, becomes the floor.
    """
    fill = find_fill(volume.data)
    surrounding = background(volume.data, fill)
    shown = volume.data != surrounding
    is_alone = (fill is None or fill.values == (surrounding,)) and _is_brain_alone(volume, shown, surrounding)
    if is_alone:
        fill = None  # the zero around a brain that was shifted below zero looks like fill, but its rim is brain
    elif fill is not None:
        shown &= ~fill.mask
        is_alone = _is_brain_alone(volume, shown, surrounding)
    measured = volume.data if fill is None else volume.data[~fill.mask]
    floor = 0.0
    if shown.any() and measured.min() < 0:
        floor = min(0.0, float(np.percentile(volume.data[shown], _FLOOR_PERCENT)))
    if not is_alone:
        return Ground(floor, fill)
    brightest = float(np.percentile(volume.data[shown], 99))
    if 0 < floor - surrounding < _NEAR * (brightest - floor):
        floor = surrounding
    return Ground(floor, fill, shown)


def background(data: np.ndarray, fill: Fill | None = None) -> float:
    """The most frequent value on the faces of a volume, without fill: 0 in a stripped scan that was not shifted."""
    faces = faces_of(data)
    if fill is not None:
        measured = faces[~faces_of(fill.mask)]
        if measured.size >= _LEAST_MEASURED * faces.size:
            faces = measured
    values, counts = np.unique(faces, return_counts=True)
    return float(values[np.argmax(counts)])


def _is_brain_alone(volume: Volume, shown: np.ndarray, surrounding: float) -> bool:
    """Whether the voxels that differ from the background are a brain without its skull.

    A head that is cut by its field of view can be as small as a brain. But from its surface inwards it is bright
    (scalp), then dark (bone), then bright again; a brain is not. This test requires that the background is the darkest
    value, that is, the zero of the signal.
    """
    if not shown.any() or shown.mean() >= _MOST_SHOWN:
        return False
    voxel_ml = float(np.prod(volume.spacing)) / 1000
    if shown.sum() * voxel_ml >= _LARGEST_BRAIN_ML:
        return False
    darker = float((volume.data[shown] < surrounding).mean())
    return darker > _MOST_DARKER or not _has_skull(volume, shown, surrounding)


def _has_skull(volume: Volume, shown: np.ndarray, zero: float) -> bool:
    """Whether there is a dark layer below the surface of what a scan shows."""
    steps = [max(1, round(_LOOK_MM / size)) for size in volume.spacing]
    coarse = tuple(slice(None, None, step) for step in steps)
    sizes_mm = [size * step for size, step in zip(volume.spacing, steps, strict=True)]
    head = largest(_filled(shown[coarse]))
    depth_mm = _depth(head, sizes_mm)
    signal = volume.data[coarse] - zero
    deep = signal[head & (depth_mm > _DEEP_MM)]
    if deep.size == 0:
        return False
    rim_mm = float(np.prod(sizes_mm)) ** (1 / 3) * 1.01  # the outermost voxels are only partly inside
    inner = head & (depth_mm > rim_mm)
    brightest_outside = 0.0
    darkest_skull = np.inf
    darkest_below = np.inf
    first_skull_mm, last_skull_mm = _SKULL_MM
    for start in np.arange(0, _DEEP_MM, _LAYER_MM):
        layer = signal[inner & (depth_mm > start) & (depth_mm <= start + _LAYER_MM)]
        if layer.size == 0:
            continue
        quartile, median = np.percentile(layer, [25, 50])
        if start < _OUTER_MM:
            brightest_outside = max(brightest_outside, float(median))
        else:
            darkest_below = min(darkest_below, float(quartile))
        if first_skull_mm <= start < last_skull_mm:
            darkest_skull = min(darkest_skull, float(quartile))
    is_dark = darkest_skull < _DARK * float(np.median(deep))
    return is_dark or darkest_below < _GAP * brightest_outside


def _filled(shown: np.ndarray) -> np.ndarray:
    """Fill the holes of a region; what it encloses on a face of the volume counts as a hole, too."""
    closed = np.pad(shown, 1)
    for axis in range(3):
        for end in (0, -1):
            face = np.take(shown, end, axis)
            inner: list[slice | int] = [slice(1, -1)] * 3
            inner[axis] = end
            closed[tuple(inner)] = ndimage.binary_fill_holes(face)
    filled = ndimage.binary_fill_holes(closed)
    return filled[1:-1, 1:-1, 1:-1]


def _depth(head: np.ndarray, sizes: list[float]) -> np.ndarray:
    """Depth below the surface in mm; a face at which the field of view cuts the head is not a surface."""
    margins = [int(np.ceil(_DEEP_MM / size)) + 1 for size in sizes]
    padding = [(margin, margin) for margin in margins]
    continued = np.pad(head, padding, mode="edge")
    depth = ndimage.distance_transform_edt(continued, sampling=sizes)
    without_margin = tuple(slice(margin, -margin) for margin in margins)
    return depth[without_margin]
