"""Fill values: what a file holds where nothing was measured, wherever that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_KEPT_BITS = 10
"""Of a value's 23 bits after the leading one: those by which values are told apart."""
_LEAST_BLOCKS = 8
"""Constant cubes of 2 x 2 x 2 voxels from which a value may be a fill value."""
_LEAST_REPEATS = 16
"""Voxels that must share the lowest value exactly, where they do not lie together."""
_LOW_GAP = 0.02
"""Distance of a fill value below zero from the darkest of all else, as a share of the range of all else."""
_HIGH_GAP = 0.5
"""The same above the brightest of all else, for regions that reach the volume's faces: saturated tissue seldom does."""
_FAR_GAP = 3.0
"""The same for regions inside the volume, which must also end abruptly."""
_OUTNUMBERS = 2
"""Voxels of a fill value for each voxel of another value near it: the histogram of tissue has no such lone peaks."""
_EXACT = 0.99
"""Part of a fill region that must have just its value to be left as it is."""
_RINGING = 0.15
"""Part of the step to all else by which cubic interpolation overshoots at its ends."""
_INNER_GAP = 0.05
"""Distance from the darkest of all else of a fill value among the tissues', which must fill edges of the volume."""
_LEAST_SHARE = 0.001
"""Part of the volume that such a region takes at least."""
_LEAST_BELOW = 0.01
"""Part of all else that is darker than it; where less is, it is the scan's own dark air."""
_SOLID = 0.5
"""Part of such a region that constant cubes make up; quantised noise has fewer of them."""
_BLENDED = 0.05
"""Part of the voxels around a fill region that lie out of range, from which its rim is taken for interpolated."""
_WIDEST_RIM = 8
"""Voxels that a rim is wide at most."""
_SAMPLE = 1_000_000
"""About as many voxels stand for all in percentiles."""


@dataclass(frozen=True)
class Fill:
    """Where a scan holds fill values.

    Attributes
    ----------
    mask:
        ``(I, J, K)`` bool: the fill, with the rim in which interpolation has mixed it with the scan.
    values:
        The fill values, ascending.
    """

    mask: np.ndarray
    values: tuple[float, ...]


@dataclass(frozen=True)
class _Range:
    """The darkest and the brightest of what was measured, but for outliers."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


def find_fill(data: np.ndarray) -> Fill | None:
    """Constant values that no measurement gave: padding, masked regions, replaced NaN. None where there are none.

    Three kinds are found. Values below zero that lie below all else, alone or in regions. Values that lie above all else, in regions
    that reach the faces of the volume or end abruptly. And constant regions along edges of the volume whose value lies among the
    tissues' (standard scores padded with 0). Zero, or any other value, that is just the darkest of a scan is its own dark air.

    Parameters
    ----------
    data:
        ``(I, J, K)`` finite.
    """
    levels = _levels(data)
    constant = _constant_blocks(levels)
    values, counts = np.unique(levels[:-1, :-1, :-1][constant], return_counts=True)
    values = values[counts >= _LEAST_BLOCKS]
    lowest = levels.min()
    if lowest < 0 and int((levels == lowest).sum()) >= _LEAST_REPEATS:
        values = np.union1d(values, [lowest])
    ordered = _sample(levels)
    low = _low_bound(values, ordered)
    ordered = ordered[ordered > low]
    high = _high_bound(values, ordered, levels)
    ordered = ordered[ordered < high]
    if ordered.size == 0:
        return None
    mask = _out_of_range(data, levels, low, high)
    found = values[(values <= low) | (values >= high)].tolist()
    if mask.any():
        mask = _with_rim(mask, levels, _range(ordered), low, high)
        ordered = _sample(levels[~mask])
    inside = values[(values > low) & (values < high)]
    for value, region in _inner_fill(levels, inside, constant, ordered):
        mask |= region
        found.append(value)
    if not mask.any():
        return None
    exact = sorted(float(np.median(data[levels == value])) for value in found)
    return Fill(mask, tuple(exact))


def _levels(data: np.ndarray) -> np.ndarray:
    """The data rounded to about three digits: interpolation leaves a constant region constant but for the last of them."""
    dropped = 23 - _KEPT_BITS
    bits = data.astype(np.float32).view(np.int32)
    rounded = ((bits + (1 << (dropped - 1))) & ~((1 << dropped) - 1)).view(np.float32)
    sizes = np.abs(_sample(data))
    sizes = sizes[sizes > 0]
    faint = 2.0**-_KEPT_BITS * float(np.percentile(sizes, 25)) if sizes.size else 0.0
    return np.where(np.abs(rounded) < faint, np.float32(0), rounded)


def _out_of_range(data: np.ndarray, levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """What lies at or beyond the bounds; where a bound is a fill value itself, to its last digit."""
    mask = (levels < low) | (levels > high)
    for bound in (low, high):
        at = levels == np.float32(bound)
        if at.any():
            exact, counts = np.unique(data[at], return_counts=True)
            most = int(counts.argmax())
            lone = counts[most] >= _EXACT * counts.sum()
            mask |= (data == exact[most]) if lone else at
    return mask


def _constant_blocks(data: np.ndarray) -> np.ndarray:
    """Which cubes of 2 x 2 x 2 voxels are constant, ``(I - 1, J - 1, K - 1)`` bool, by their first corner."""
    least = most = data
    for axis in range(3):
        first = [slice(None)] * 3
        second = [slice(None)] * 3
        first[axis] = slice(None, -1)
        second[axis] = slice(1, None)
        least = np.minimum(least[tuple(first)], least[tuple(second)])
        most = np.maximum(most[tuple(first)], most[tuple(second)])
    return least == most


def _sample(data: np.ndarray) -> np.ndarray:
    """Some of the voxels, evenly spread and ascending."""
    step = max(1, data.size // _SAMPLE) | 1  # odd, so as not to fall into step with the rows
    return np.sort(data.ravel()[::step])


def _range(ordered: np.ndarray, tail: float = 0.02) -> _Range:
    """Range of ascending values; the lower ``tail`` may be an interpolated rim."""
    last = len(ordered) - 1
    return _Range(float(ordered[int(tail * last)]), float(ordered[int(0.998 * last)]))


def _low_bound(values: np.ndarray, ordered: np.ndarray) -> float:
    """At or below it all is fill: a little above the highest fill value below all else. Minus infinity where there is none."""
    for value in values[values < 0][::-1]:
        above = ordered[np.searchsorted(ordered, value, "right") :]
        if above.size == 0:
            continue
        reach = float(np.median(above)) - value
        ringing = value + _RINGING * reach
        rest = _range(above[np.searchsorted(above, ringing) :])
        gap = rest.low - value
        if rest.width <= 0 or gap < max(_LOW_GAP * rest.width, 2 * _RINGING * reach):
            continue
        near = _count(ordered, ringing, value + gap / 2)
        if _OUTNUMBERS * near <= _count(ordered, -np.inf, ringing):
            bound = float(value + _RINGING * gap)
            return float(value) if _is_exact(ordered[ordered <= bound], values) else bound
    return -np.inf


def _high_bound(values: np.ndarray, ordered: np.ndarray, data: np.ndarray) -> float:
    """At or above it all is fill: a little below the lowest fill value above all else. Infinity where there is none."""
    bound = np.inf
    for value in values[values > 0][::-1]:
        below = ordered[: np.searchsorted(ordered, value, "left")]
        if value >= bound or below.size == 0:
            continue
        reach = value - float(np.median(below))
        ringing = value - _RINGING * reach
        rest = _range(below[: np.searchsorted(below, ringing)])
        gap = value - rest.high
        if rest.width <= 0 or gap < max(_HIGH_GAP * rest.width, 2 * _RINGING * reach):
            continue
        near = _count(ordered, value - gap / 2, ringing)
        over = _count(ordered, value + _RINGING * reach, bound)
        if _OUTNUMBERS * (near + over) > _count(ordered, ringing, bound):
            continue
        region = data >= ringing
        at_faces = any(np.take(region, end, axis).any() for axis in range(3) for end in (0, -1))
        if at_faces or (gap >= _FAR_GAP * rest.width and _is_abrupt(region, data, rest)):
            bound = float(value - _RINGING * gap)
            bound = float(value) if _is_exact(ordered[ordered >= bound], values) else bound
    return bound


def _is_exact(fill: np.ndarray, values: np.ndarray) -> bool:
    """Whether all but a few of the voxels have one of the fill values, so that none was interpolated."""
    return bool(np.isin(fill, values).mean() >= _EXACT)


def _count(ordered: np.ndarray, low: float, high: float) -> int:
    """How many of ascending values lie between two bounds."""
    return int(np.searchsorted(ordered, high) - np.searchsorted(ordered, low, "right"))


def _is_abrupt(region: np.ndarray, data: np.ndarray, rest: _Range) -> bool:
    """Whether most of what lies around a bright region is no brighter than all else: saturated tissue fades instead."""
    around = data[grown(region) & ~region]
    return around.size > 0 and bool(np.median(around) <= rest.high)


def _with_rim(fill: np.ndarray, data: np.ndarray, rest: _Range, low: float, high: float) -> np.ndarray:
    """Fill beyond the range of all else, with what interpolation has mixed with it.

    A shell of voxels in which several lie between the fill and all else was interpolated. A cubic kernel overshoots in the shell
    beyond, which is left out, too.
    """
    below, above = -np.inf, np.inf
    if np.isfinite(low):
        below = rest.low - max(0.02 * rest.width, 0.1 * (rest.low - low))
    if np.isfinite(high):
        above = rest.high + max(0.02 * rest.width, 0.1 * (high - rest.high))
    blended = (data < below) | (data > above)
    mask, width = fill, 0
    while width < _WIDEST_RIM:
        wider = grown(mask)
        shell = wider & ~mask
        if not shell.any() or blended[shell].mean() < _BLENDED:
            break
        mask = wider
        width += 1
    return grown(mask) if width else mask


def _inner_fill(
    data: np.ndarray, values: np.ndarray, constant: np.ndarray, ordered: np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """Values among the tissues' that fill constant regions along edges of the volume, and those regions."""
    if ordered.size == 0:
        return
    rest = _range(ordered)
    for value in np.intersect1d(values, _edges(data)):
        darker = np.searchsorted(ordered, value, "left") / len(ordered)
        if value - rest.low < _INNER_GAP * rest.width or darker < _LEAST_BELOW:
            continue
        region = _reaching_edges(data == value)
        cubes = constant & region[:-1, :-1, :-1]
        if region.mean() >= _LEAST_SHARE and cubes.sum() >= _SOLID * region.sum():
            yield float(value), _with_slope(region, data, float(value))


def _edges(data: np.ndarray) -> np.ndarray:
    """All voxels of the twelve edges of a volume."""
    ends = (0, -1)
    along = [data[:, j, k] for j in ends for k in ends]
    along += [data[i, :, k] for i in ends for k in ends]
    along += [data[i, j, :] for i in ends for j in ends]
    return np.concatenate(along)


def _reaching_edges(region: np.ndarray) -> np.ndarray:
    """The connected parts of a region that reach an edge of the volume."""
    labels, _ = ndimage.label(region)
    reaching = np.setdiff1d(np.unique(_edges(labels)), [0])
    return np.isin(labels, reaching)


def _with_slope(region: np.ndarray, data: np.ndarray, value: float) -> np.ndarray:
    """A region with the shells around it that lead from its value to that of what lies beyond."""
    for _ in range(_WIDEST_RIM):
        wider = grown(region)
        shell = wider & ~region
        beyond = grown(wider) & ~wider
        if not beyond.any():
            break
        nearer = abs(float(np.median(data[shell])) - value)
        farther = abs(float(np.median(data[beyond])) - value)
        if nearer > 0.9 * farther:
            break
        region = wider
    return region


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask wider by one voxel in every direction, diagonals too."""
    return ndimage.maximum_filter(mask.view(np.uint8), 3).view(bool)
