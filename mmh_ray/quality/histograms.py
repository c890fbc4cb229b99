"""Intensity curves of every site before and after harmonization, as lines for an SVG of :data:`WIDTH` x :data:`HEIGHT`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmh_ray.quality.cohort import NO_SITE, UPPER, ImageRecord

MOST = 12
"""Sites with a line of their own; the others share a grey band."""
WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 12, 42
_BINS = 100
_MIDDLES = (np.arange(_BINS) + 0.5) * UPPER / _BINS


class Line(NamedTuple):
    """A site's mean curve: its colour by number, its images, and the SVG paths before and after."""

    site: str
    colour: int
    images: int
    paths: tuple[str, str]


class Tick(NamedTuple):
    """A mark on an axis: where it is in the SVG, and what it says."""

    position: float
    label: str


class Plot(NamedTuple):
    """Everything to draw of one sequence; ``band`` is the range of the ``others`` sites' mean curves."""

    sequence: str
    lines: list[Line]
    others: int
    band: tuple[str, str] | None
    across: list[Tick]
    up: list[Tick]


def histogram(values: np.ndarray, bins: int = 50) -> list[float]:
    """Densities of intensities in equal bins over 0 to :data:`UPPER`, as :class:`ImageRecord` takes them, with 4 digits."""
    counts, _ = np.histogram(values, bins, (0, UPPER))
    return [float(f"{density:.4g}") for density in counts * bins / (UPPER * max(values.size, 1))]


def plots(images: Iterable[ImageRecord]) -> list[Plot]:
    """A plot per sequence from the images that have both histograms.

    The :data:`MOST` sites with the most such images have their own line, in the same colour in every plot.
    """
    groups: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    sizes: Counter[str] = Counter()
    for image in images:
        if (pair := _pair(image)) is not None:
            groups[image.sequence][image.site or NO_SITE].append(pair)
            sizes[image.site or NO_SITE] += 1
    largest = sorted(sorted(sizes), key=lambda site: -sizes[site])[:MOST]
    colours = {site: i for i, site in enumerate(sorted(largest))}
    return [_plot(sequence, groups[sequence], colours) for sequence in sorted(groups)]


def _pair(image: ImageRecord) -> np.ndarray | None:
    """``(2, bins)`` densities before and after; None unless both are there and finite."""
    pair = [_at_middles(histogram) for histogram in (image.histogram_before, image.histogram_after)]
    return np.stack(pair) if all(np.isfinite(curve).all() for curve in pair) else None


def _at_middles(histogram: Sequence[float] | None) -> np.ndarray:
    """Densities at the common bins; NaN for no histogram."""
    values = np.asarray([] if histogram is None else histogram, float)
    if not values.size:
        return np.full(_BINS, np.nan)
    return np.interp(_MIDDLES, (np.arange(values.size) + 0.5) * UPPER / values.size, values)


def _plot(sequence: str, sites: dict[str, list[np.ndarray]], colours: dict[str, int]) -> Plot:
    means = {site: np.mean(pairs, axis=0) for site, pairs in sorted(sites.items())}
    top = max(float(mean.max()) for mean in means.values()) or 1.0
    rest = [mean for site, mean in means.items() if site not in colours]
    lines = [
        Line(site, colours[site], len(sites[site]), (_path(mean[0], top), _path(mean[1], top)))
        for site, mean in means.items()
        if site in colours
    ]
    band = (_band(rest, 0, top), _band(rest, 1, top)) if rest else None
    across = [Tick(float(_x(value)), f"{value:g}") for value in np.arange(0, UPPER + 0.01, 0.25)]
    return Plot(sequence, lines, len(rest), band, across, _up(top))


def _up(top: float) -> list[Tick]:
    """Up to five round densities from 0 to the highest."""
    rough = top / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [Tick(float(_y(value, top)), f"{value:g}") for value in np.arange(0, top + step / 1e6, step)]


def _x(intensity: np.ndarray | float) -> np.ndarray:
    return LEFT + np.asarray(intensity) / UPPER * (WIDTH - LEFT - RIGHT)


def _y(density: np.ndarray | float, top: float) -> np.ndarray:
    return HEIGHT - BOTTOM - np.asarray(density) / top * (HEIGHT - TOP - BOTTOM)


def _path(curve: np.ndarray, top: float, x: np.ndarray = _MIDDLES) -> str:
    """An SVG path through the curve's points."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(_x(x), _y(curve, top), strict=True))


def _band(means: list[np.ndarray], which: int, top: float) -> str:
    """A closed SVG path around all of these curves."""
    curves = np.stack([mean[which] for mean in means])
    around = np.concatenate([curves.max(axis=0), curves.min(axis=0)[::-1]])
    return _path(around, top, np.concatenate([_MIDDLES, _MIDDLES[::-1]])) + "Z"
