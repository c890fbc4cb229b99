"""Finds which values of a scan are fill, not measured: by the histogram and by constant cubes of voxels.

"The rest" below are the voxels that were measured: all but fill.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmh_ray.imaging.borders import faces_of, grown

_KEPT_BITS = 10
"""Number of a value's 23 mantissa bits that are compared; values that differ only in later bits count as equal."""
_LEAST_BLOCKS = 8
"""Least number of constant cubes of 2 x 2 x 2 voxels that a fill value has."""
_LEAST_REPEATS = 16
"""Least number of voxels that share the lowest value exactly, if they are scattered."""
_LOW_GAP = 0.05
"""Least distance of a fill value below zero from the darkest of the rest, as a share of the range of the rest."""
_HIGH_GAP = 0.5
"""Least distance above the brightest of the rest, for regions that touch the volume's faces; saturated tissue seldom
does."""
_FAR_GAP = 3.0
"""Least distance above the brightest of the rest for regions inside the volume, which must also end abruptly."""
_OUTNUMBERS = 2
"""Least number of fill voxels per voxel of a similar value: the histogram of tissue has no such isolated peaks."""
EXACT = 0.99
"""Part of a fill region that must have exactly the fill value for the region to count as not interpolated."""
RINGING = 0.15
"""Overshoot of cubic interpolation at an edge, as a share of the step."""
RIM_TAIL = 0.02
"""Part of the rest that may be an interpolated rim."""
OUTLIERS = 0.002
"""Part of the rest that is brighter than its range: vessels, fat."""
_UNDERSHOT = 0.2
"""Least number of voxels below a low fill value, per voxel slightly above it, for it to be interpolated fill that
rings: noise lies on both sides."""
_STRAY = 0.15
"""Largest number of voxels slightly above a low fill value, per voxel of the fill itself, that may be its rim."""
_SAMPLE = 1_000_000
"""Approximate number of voxels from which percentiles are computed."""


@dataclass(frozen=True)
class Range:
    """The darkest and the brightest measured value, without outliers."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


def candidate_values(levels: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Values that may be fill, ascending: those of several constant cubes, and a repeated lowest value below zero.

    Parameters
    ----------
    levels:
        ``(I, J, K)`` of :func:`rounded_levels`.
    constant:
        ``(I - 1, J - 1, K - 1)`` of :func:`constant_cubes`.
    """
    first_corners = levels[:-1, :-1, :-1]
    values, counts = np.unique(first_corners[constant], return_counts=True)
    values = values[counts >= _LEAST_BLOCKS]
    lowest = levels.min()
    if lowest < 0:
        repeats = int((levels == lowest).sum())
        if repeats >= _LEAST_REPEATS:
            values = np.union1d(values, [lowest])
    return values


def rounded_levels(data: np.ndarray) -> np.ndarray:
    """Round the data to about three digits, because interpolation changes the last digits of a constant region."""
    dropped = 23 - _KEPT_BITS
    half = 1 << (dropped - 1)
    kept = ~((1 << dropped) - 1)
    bits = data.astype(np.float32).view(np.int32)
    rounded_bits = (bits + half) & kept
    rounded = rounded_bits.view(np.float32)
    sizes = np.abs(sampled(data))
    sizes = sizes[sizes > 0]
    faint = 0.0
    if sizes.size:
        faint = 2.0**-_KEPT_BITS * float(np.percentile(sizes, 25))
    is_faint = np.abs(rounded) < faint
    return np.where(is_faint, np.float32(0), rounded)


def constant_cubes(data: np.ndarray) -> np.ndarray:
    """Which cubes of 2 x 2 x 2 voxels are constant: ``(I - 1, J - 1, K - 1)`` bool at the cube's first corner."""
    least = most = data
    for axis in range(3):
        least_along = np.moveaxis(least, axis, 0)
        most_along = np.moveaxis(most, axis, 0)
        least = np.moveaxis(np.minimum(least_along[:-1], least_along[1:]), 0, axis)
        most = np.moveaxis(np.maximum(most_along[:-1], most_along[1:]), 0, axis)
    return least == most


def sampled(data: np.ndarray) -> np.ndarray:
    """An evenly spread sample of the voxels, sorted."""
    step = max(1, data.size // _SAMPLE)
    odd_step = step | 1  # an even step could take the same columns of every row
    voxels = data.ravel()
    return np.sort(voxels[::odd_step])


def range_of(ordered: np.ndarray, tail: float) -> Range:
    """Range of sorted values without their ends: 2 % at the lower end and the share ``tail`` at the upper one."""
    last = len(ordered) - 1
    low = ordered[int(RIM_TAIL * last)]
    high = ordered[int((1 - tail) * last)]
    return Range(float(low), float(high))


def low_bound(values: np.ndarray, ordered: np.ndarray) -> float:
    """The bound at or below which everything is fill; minus infinity if there is no low fill.

    It lies slightly above the highest fill value below the rest.
    """
    highest_first = values[values < 0][::-1]
    for value in highest_first:
        first_above = np.searchsorted(ordered, value, "right")
        above = ordered[first_above:]
        if above.size == 0:
            continue
        reach = float(np.median(above)) - value
        ringing = value + RINGING * reach
        beyond_ringing = above[np.searchsorted(above, ringing) :]
        rest = range_of(beyond_ringing, OUTLIERS)
        gap = rest.low - value
        least_gap = max(_LOW_GAP * rest.width, 2 * RINGING * reach)
        if rest.width <= 0 or gap < least_gap:
            continue
        just_below = np.nextafter(value, np.float32(-np.inf))
        just_above = np.nextafter(value, np.float32(np.inf))
        under = _count(ordered, -np.inf, just_below)
        exact = _count(ordered, value, value)
        over = _count(ordered, just_above, ringing)
        near = _count(ordered, ringing, value + gap / 2)
        is_ringing = under >= _UNDERSHOT * over
        is_lone = over <= _STRAY * exact
        outnumbers = _OUTNUMBERS * near <= under + exact + over
        if (is_ringing or is_lone) and outnumbers:
            bound = float(value + RINGING * gap)
            fill = ordered[ordered <= bound]
            return float(value) if _is_exact(fill, values) else bound
    return -np.inf


def high_bound(values: np.ndarray, ordered: np.ndarray, data: np.ndarray) -> float:
    """The bound at or above which everything is fill; infinity if there is no high fill.

    It lies slightly below the lowest fill value above the rest.
    """
    steps = [length - 1 for length in data.shape]
    corners = data[:: steps[0], :: steps[1], :: steps[2]]
    bound = np.inf
    highest_first = values[values > 0][::-1]
    for value in highest_first:
        past_below = np.searchsorted(ordered, value, "left")
        below = ordered[:past_below]
        if value >= bound or below.size == 0:
            continue
        reach = value - float(np.median(below))
        ringing = value - RINGING * reach
        at_corner = bool((corners >= ringing).any())
        tail = RIM_TAIL if at_corner else OUTLIERS
        before_ringing = below[: np.searchsorted(below, ringing)]
        rest = range_of(before_ringing, tail)
        gap = value - rest.high
        least_gap = max(_HIGH_GAP * rest.width, 2 * RINGING * reach)
        if rest.width <= 0 or gap < least_gap:
            continue
        halfway = value - gap / 2
        near = _count(ordered, halfway, ringing)
        beyond = _count(ordered, value + RINGING * reach, bound)
        fill_count = _count(ordered, ringing, bound)
        if _OUTNUMBERS * (near + beyond) > fill_count:
            continue
        region = data >= ringing
        is_far = gap >= _FAR_GAP * rest.width
        reaches_faces = faces_of(region).any()
        if reaches_faces or (is_far and _is_abrupt(region, data, halfway)):
            bound = float(value - RINGING * gap)
            fill = ordered[ordered >= bound]
            bound = float(value) if _is_exact(fill, values) else bound
    return bound


def _is_exact(fill: np.ndarray, values: np.ndarray) -> bool:
    """Whether nearly all of the voxels have exactly a fill value, so that none was interpolated."""
    has_fill_value = np.isin(fill, values)
    return bool(has_fill_value.mean() >= EXACT)


def _count(ordered: np.ndarray, low: float, high: float) -> int:
    """How many sorted values lie between two bounds, inclusive."""
    past_last = np.searchsorted(ordered, high, "right")
    first = np.searchsorted(ordered, low)
    return int(past_last - first)


def _is_abrupt(region: np.ndarray, data: np.ndarray, halfway: float) -> bool:
    """Whether the voxels around a bright region are mostly less than halfway to it; saturated tissue fades instead."""
    shell = grown(region) & ~region
    around = data[shell]
    if around.size == 0:
        return False
    return bool(np.median(around) <= halfway)
