"""Finds the fill of a scan: voxels with a constant value because nothing was measured there.

:mod:`mmh_ray.imaging.fill_values` finds which values are fill; this module finds which voxels are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmh_ray.imaging.borders import edges_of, grown, reaching_edges
from mmh_ray.imaging.fill_values import (
    EXACT,
    OUTLIERS,
    RIM_TAIL,
    RINGING,
    Range,
    candidate_values,
    constant_cubes,
    high_bound,
    low_bound,
    range_of,
    rounded_levels,
    sampled,
)

_INNER_GAP = 0.05
"""Least distance of an inner fill value from the darkest measured value, as a share of the measured range.

An inner fill value lies among the tissues' values; it must fill edges of the volume.
"""
_SLOPE = 0.9
"""A shell around a region is interpolated if its distance from the region's value is at most this share of the next
shell's distance."""
_LEAST_SHARE = 0.001
"""Least part of the volume that a region of inner or loose fill takes up."""
_LOOSE_GAP = 0.5
"""Least distance of loose fill from the range of the volume's middle, as a share of that range."""
_RINGING_DECAY = 0.27
"""Factor by which the ringing of a cubic spline falls from voxel to voxel."""
_HARMLESS = 0.02
"""Ringing that may remain, as a share of the measured range."""
_LEAST_BELOW = 0.01
"""Least part of all voxels that is darker than an inner fill value; else the value is the scan's own dark air."""
_SOLID = 0.5
"""Least part of a region of inner fill that consists of constant cubes; quantised noise has fewer of them."""
_BLENDED = 0.05
"""Part of the voxels around a fill region that must be out of range for its rim to count as interpolated."""
_WIDEST_RIM = 8
"""Largest width of a rim in voxels."""


@dataclass(frozen=True)
class Fill:
    """The fill of a scan.

    Attributes
    ----------
    mask:
        ``(I, J, K)`` bool: the fill and the rim in which interpolation has mixed it with the scan.
    values:
        The fill values, ascending.
    step:
        If the fill was interpolated: distance of the farthest fill value from the measured range, in units of that
        range; else 0. A cubic kernel carries a tenth of it into the next voxels and a hundredth into those after.
    """

    mask: np.ndarray
    values: tuple[float, ...]
    step: float = 0.0


def find_fill(data: np.ndarray) -> Fill | None:
    """Find constant values that were not measured: padding, masked regions, replaced NaN. None if there are none.

    Three kinds are found:

    - values below zero that lie below all others, in single voxels or in regions;
    - values that lie above all others, in regions that touch the faces of the volume or end abruptly;
    - constant regions along edges of the volume with a value in the range of the tissues (standard scores padded
      with 0).

    Zero, or any other value that is merely the darkest of the scan, counts as its own dark air.

    Parameters
    ----------
    data:
        ``(I, J, K)`` finite.
    """
    levels = rounded_levels(data)
    constant = constant_cubes(levels)
    values = candidate_values(levels, constant)
    everything = sampled(levels)
    high = high_bound(values, everything, levels)
    below_high = everything[everything < high]
    low = low_bound(values, below_high)
    measured = below_high[below_high > low]
    if measured.size == 0:
        return None

    mask = _out_of_range(data, levels, low, high)
    fill_values = values[(values <= low) | (values >= high)].tolist()
    step = 0.0
    if mask.any():
        rest = range_of(measured, RIM_TAIL)
        wider = _with_rim(mask, levels, rest, low, high)
        was_interpolated = wider.sum() > mask.sum()
        if was_interpolated and fill_values:
            step = max(abs(value - rest.low) for value in fill_values) / rest.width
        mask = wider

    loose = _loose_fill(levels, mask)
    if loose is not None:
        mask |= loose.mask
        fill_values = fill_values or list(loose.values)
        step = max(step, loose.step)
    if mask.all():
        return None

    if mask.any():
        measured = sampled(levels[~mask])
    between = values[(values > low) & (values < high)]
    for value, region in _inner_fill(levels, between, constant, measured, everything):
        mask |= region
        fill_values.append(value)
    if not mask.any():
        return None
    exact = [_exact_value(data, levels, value) for value in fill_values]
    return Fill(mask, tuple(sorted(exact)), step)


def _exact_value(data: np.ndarray, levels: np.ndarray, level: float) -> float:
    """The typical value in the data that was rounded to this level."""
    at_level = data[levels == level]
    if at_level.size == 0:
        return level
    return float(np.median(at_level))


def _out_of_range(data: np.ndarray, levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """The voxels at or beyond the bounds. If a bound is itself a fill value, only voxels that equal it to the last
    digit count as at the bound."""
    mask = (levels < low) | (levels > high)
    for bound in (low, high):
        at = levels == np.float32(bound)
        if at.any():
            exact, counts = np.unique(data[at], return_counts=True)
            most = int(counts.argmax())
            lone = counts[most] >= EXACT * counts.sum()
            mask |= (data == exact[most]) if lone else at
    return mask


def _with_rim(fill: np.ndarray, data: np.ndarray, rest: Range, low: float, high: float) -> np.ndarray:
    """Add to the fill the voxels into which interpolation has mixed it.

    A shell around the fill was interpolated if several of its voxels lie between the fill and the rest. A cubic kernel
    overshoots in the next shell, so that one is added, too.
    """
    below = -np.inf
    above = np.inf
    if np.isfinite(low):
        below = rest.low - max(0.02 * rest.width, 0.1 * (rest.low - low))
    if np.isfinite(high):
        above = rest.high + max(0.02 * rest.width, 0.1 * (high - rest.high))
    blended = (data < below) | (data > above)
    mask = fill
    width = 0
    while width < _WIDEST_RIM:
        wider = grown(mask)
        shell = wider & ~mask
        if not shell.any() or blended[shell].mean() < _BLENDED:
            break
        mask = wider
        width += 1
    return grown(mask | blended) if width else mask


def _loose_fill(data: np.ndarray, known_fill: np.ndarray) -> Fill | None:
    """Find fill along the volume's edges that interpolation has left constant nowhere, besides the known fill.

    It lies far out of the range of the volume's middle. The rim in which a cubic kernel rings is included.
    """
    middle_box = tuple(slice(size // 4, size - size // 4) for size in data.shape)
    low, high = np.percentile(data[middle_box], [0.1, 99.9]).tolist()
    width = high - low
    far_below = data < low - _LOOSE_GAP * width
    far_above = data > high + _LOOSE_GAP * width
    beyond = (far_below | far_above) & ~known_fill
    if width <= 0 or not edges_of(beyond).any():
        return None
    loose = reaching_edges(beyond)
    if loose.mean() < _LEAST_SHARE:
        return None
    value = float(np.median(data[loose]))
    step = abs(value - low) / width
    ringing_at_edge = np.log(RINGING * step / _HARMLESS)
    shells_that_ring = np.ceil(ringing_at_edge / np.log(1 / _RINGING_DECAY))
    shells = int(np.clip(shells_that_ring, 1, _WIDEST_RIM))
    for _ in range(shells):
        loose = grown(loose)
    return Fill(loose, (value,), step)


def _inner_fill(
    data: np.ndarray, values: np.ndarray, constant: np.ndarray, ordered: np.ndarray, everything: np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """Find constant regions along edges of the volume with values in the range of the tissues.

    Yields each value with its region. ``ordered`` and ``everything`` are sorted samples of the rest and of all voxels.
    """
    if ordered.size == 0:
        return
    rest = range_of(ordered, OUTLIERS)
    for value in np.intersect1d(values, edges_of(data)):
        darker = np.searchsorted(everything, value, "left") / len(everything)
        if value - rest.low < _INNER_GAP * rest.width or darker < _LEAST_BELOW:
            continue
        region = reaching_edges(data == value)
        cubes = constant & region[:-1, :-1, :-1]
        is_large = region.mean() >= _LEAST_SHARE
        is_solid = cubes.sum() >= _SOLID * region.sum()
        if is_large and is_solid:
            yield float(value), _with_slope(region, data, float(value), rest.low)


def _with_slope(region: np.ndarray, data: np.ndarray, value: float, low: float) -> np.ndarray:
    """Add to a region the shells around it that have almost its value or lie on the slope from it to the rest."""
    alike = np.abs(data - value) <= RINGING * (value - low)
    for _ in range(_WIDEST_RIM):
        wider = grown(region)
        shell = wider & ~region
        beyond = grown(wider) & ~wider
        if not beyond.any():
            break
        nearer = abs(float(np.median(data[shell])) - value)
        farther = abs(float(np.median(data[beyond])) - value)
        if nearer > _SLOPE * farther and alike[shell].mean() < 0.5:
            break
        region = wider
    return region
