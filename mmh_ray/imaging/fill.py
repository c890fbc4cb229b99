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
_LOW_GAP = 0.05
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
_SLOPE = 0.9
"""Distance of a shell from the value of the region inside it, as a share of that of the next shell, up to which it is interpolated."""
_LEAST_SHARE = 0.001
"""Part of the volume that such a region takes at least."""
_LOOSE_GAP = 0.5
"""Distance from the range of the volume's middle, as a share of that range, from which a region along edges is fill, constant or not."""
_RINGING_DECAY = 0.27
"""By which the ringing of a cubic spline falls from voxel to voxel."""
_HARMLESS = 0.02
"""Ringing that may stay, as a share of the range of all else."""
_LEAST_BELOW = 0.01
"""Part of all else that is darker than it; where less is, it is the scan's own dark air."""
_SOLID = 0.5
"""Part of such a region that constant cubes make up; quantised noise has fewer of them."""
_BLENDED = 0.05
"""Part of the voxels around a fill region that lie out of range, from which its rim is taken for interpolated."""
_RIM_TAIL = 0.02
"""Part of all else that may be an interpolated rim."""
_OUTLIERS = 0.002
"""Part of all else that is brighter than its range: vessels, fat."""
_UNDERSHOT = 0.2
"""Voxels below a low fill value, for each a little above it, from which it was interpolated and rings: noise never lies on one side."""
_STRAY = 0.15
"""Voxels a little above a low fill value, for each that has it, which may be its rim."""
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
    step:
        Where they were interpolated, how far the farthest of them lies from the scan, in its ranges; else 0. A cubic kernel carries a
        tenth of that into the next voxels and a hundredth into those after.
    """

    mask: np.ndarray
    values: tuple[float, ...]
    step: float = 0.0


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
    everything = _sample(levels)
    high = _high_bound(values, everything, levels)
    ordered = everything[everything < high]
    low = _low_bound(values, ordered)
    ordered = ordered[ordered > low]
    if ordered.size == 0:
        return None
    mask = _out_of_range(data, levels, low, high)
    found = values[(values <= low) | (values >= high)].tolist()
    step = 0.0
    if mask.any():
        rest = _range(ordered, _RIM_TAIL)
        wider = _with_rim(mask, levels, rest, low, high)
        if wider.sum() > mask.sum():
            step = max(abs(value - rest.low) for value in found) / rest.width if found else 0.0
        mask = wider
    loose = _loose_fill(levels, mask)
    if loose is not None:
        mask |= loose.mask
        found = found or list(loose.values)
        step = max(step, loose.step)
    if mask.all():
        return None
    if mask.any():
        ordered = _sample(levels[~mask])
    inside = values[(values > low) & (values < high)]
    for value, region in _inner_fill(levels, inside, constant, ordered, everything):
        mask |= region
        found.append(value)
    if not mask.any():
        return None
    exact = [float(np.median(data[levels == value])) if (levels == value).any() else value for value in found]
    return Fill(mask, tuple(sorted(exact)), step)


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


def _range(ordered: np.ndarray, tail: float) -> _Range:
    """Range of ascending values but for their ends: 2 % at the lower, a part of ``tail`` at the upper, which may be an interpolated rim."""
    last = len(ordered) - 1
    return _Range(float(ordered[int(_RIM_TAIL * last)]), float(ordered[int((1 - tail) * last)]))


def _low_bound(values: np.ndarray, ordered: np.ndarray) -> float:
    """At or below it all is fill: a little above the highest fill value below all else. Minus infinity where there is none."""
    for value in values[values < 0][::-1]:
        above = ordered[np.searchsorted(ordered, value, "right") :]
        if above.size == 0:
            continue
        reach = float(np.median(above)) - value
        ringing = value + _RINGING * reach
        rest = _range(above[np.searchsorted(above, ringing) :], _OUTLIERS)
        gap = rest.low - value
        if rest.width <= 0 or gap < max(_LOW_GAP * rest.width, 2 * _RINGING * reach):
            continue
        under = _count(ordered, -np.inf, np.nextafter(value, np.float32(-np.inf)))
        exact = _count(ordered, value, value)
        over = _count(ordered, np.nextafter(value, np.float32(np.inf)), ringing)
        near = _count(ordered, ringing, value + gap / 2)
        is_ringing = under >= _UNDERSHOT * over
        is_lone = over <= _STRAY * exact
        if (is_ringing or is_lone) and _OUTNUMBERS * near <= under + exact + over:
            bound = float(value + _RINGING * gap)
            return float(value) if _is_exact(ordered[ordered <= bound], values) else bound
    return -np.inf


def _high_bound(values: np.ndarray, ordered: np.ndarray, data: np.ndarray) -> float:
    """At or above it all is fill: a little below the lowest fill value above all else. Infinity where there is none."""
    corners = data[:: data.shape[0] - 1, :: data.shape[1] - 1, :: data.shape[2] - 1]
    bound = np.inf
    for value in values[values > 0][::-1]:
        below = ordered[: np.searchsorted(ordered, value, "left")]
        if value >= bound or below.size == 0:
            continue
        reach = value - float(np.median(below))
        ringing = value - _RINGING * reach
        at_corner = bool((corners >= ringing).any())
        rest = _range(below[: np.searchsorted(below, ringing)], _RIM_TAIL if at_corner else _OUTLIERS)
        gap = value - rest.high
        if rest.width <= 0 or gap < max(_HIGH_GAP * rest.width, 2 * _RINGING * reach):
            continue
        near = _count(ordered, value - gap / 2, ringing)
        beyond = _count(ordered, value + _RINGING * reach, bound)
        if _OUTNUMBERS * (near + beyond) > _count(ordered, ringing, bound):
            continue
        region = data >= ringing
        at_faces = any(np.take(region, end, axis).any() for axis in range(3) for end in (0, -1))
        if at_faces or (gap >= _FAR_GAP * rest.width and _is_abrupt(region, data, value - gap / 2)):
            bound = float(value - _RINGING * gap)
            bound = float(value) if _is_exact(ordered[ordered >= bound], values) else bound
    return bound


def _is_exact(fill: np.ndarray, values: np.ndarray) -> bool:
    """Whether all but a few of the voxels have one of the fill values, so that none was interpolated."""
    return bool(np.isin(fill, values).mean() >= _EXACT)


def _count(ordered: np.ndarray, low: float, high: float) -> int:
    """How many of ascending values lie between two bounds, both included."""
    return int(np.searchsorted(ordered, high, "right") - np.searchsorted(ordered, low))


def _is_abrupt(region: np.ndarray, data: np.ndarray, halfway: float) -> bool:
    """Whether most of what lies around a bright region is not half as far above all else: saturated tissue fades instead."""
    around = data[grown(region) & ~region]
    return around.size > 0 and bool(np.median(around) <= halfway)


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
    return grown(mask | blended) if width else mask


def _loose_fill(data: np.ndarray, known: np.ndarray) -> Fill | None:
    """What lies far out of the range of the volume's middle along its edges, beside the fill that is known: fill that interpolation has
    left constant nowhere, with the rim in which a cubic kernel rings."""
    middle = data[tuple(slice(size // 4, size - size // 4) for size in data.shape)]
    low, high = (float(value) for value in np.percentile(middle, [0.1, 99.9]))
    width = high - low
    beyond = ((data < low - _LOOSE_GAP * width) | (data > high + _LOOSE_GAP * width)) & ~known
    if width <= 0 or not _edges(beyond).any():
        return None
    loose = _reaching_edges(beyond)
    if loose.mean() < _LEAST_SHARE:
        return None
    value = float(np.median(data[loose]))
    step = abs(value - low) / width
    shells = np.log(_RINGING * step / _HARMLESS) / np.log(1 / _RINGING_DECAY)
    for _ in range(int(np.clip(np.ceil(shells), 1, _WIDEST_RIM))):
        loose = grown(loose)
    return Fill(loose, (value,), step)


def _inner_fill(
    data: np.ndarray, values: np.ndarray, constant: np.ndarray, ordered: np.ndarray, everything: np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """Values among the tissues' that fill constant regions along edges of the volume, and those regions."""
    if ordered.size == 0:
        return
    rest = _range(ordered, _OUTLIERS)
    for value in np.intersect1d(values, _edges(data)):
        darker = np.searchsorted(everything, value, "left") / len(everything)
        if value - rest.low < _INNER_GAP * rest.width or darker < _LEAST_BELOW:
            continue
        region = _reaching_edges(data == value)
        cubes = constant & region[:-1, :-1, :-1]
        if region.mean() >= _LEAST_SHARE and cubes.sum() >= _SOLID * region.sum():
            yield float(value), _with_slope(region, data, float(value), rest.low)


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


def _with_slope(region: np.ndarray, data: np.ndarray, value: float, low: float) -> np.ndarray:
    """A region with the shells around it that are almost of its value, or lead from it to that of what lies beyond."""
    alike = np.abs(data - value) <= _RINGING * (value - low)
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


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask wider by one voxel in every direction, diagonals too."""
    return ndimage.maximum_filter(mask.view(np.uint8), 3).view(bool)
