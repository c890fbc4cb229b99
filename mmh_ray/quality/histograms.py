"""Draws the intensity histograms of every site before and after harmonization, as paths for an SVG."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmh_ray.quality.cohort import NO_SITE, UPPER, ImageRecord

MOST = 12
"""Largest number of sites with their own line; the others share a grey band."""
WIDTH = 480
"""Width of the SVG; the constants below are its height and margins."""
HEIGHT = 260
LEFT = 44
RIGHT = 16
TOP = 12
BOTTOM = 42
_BINS = 100
_MIDDLES = (np.arange(_BINS) + 0.5) * UPPER / _BINS
"""Unit intensity at the middle of each bin."""


class Line(NamedTuple):
    """A site's mean histogram: number of its colour, number of images, and SVG paths before and after."""

    site: str
    colour: int
    images: int
    paths: tuple[str, str]


class Tick(NamedTuple):
    """A tick on an axis: its position in the SVG and its label."""

    position: float
    label: str


class Plot(NamedTuple):
    """The plot of one sequence; ``band`` is the range of the mean histograms of the ``others`` sites without a line."""

    sequence: str
    lines: list[Line]
    others: int
    band: tuple[str, str] | None
    across: list[Tick]
    up: list[Tick]


def histogram(values: np.ndarray, bins: int = 50) -> list[float]:
    """Histogram for :class:`ImageRecord`: densities with 4 digits in equal bins over 0 to :data:`UPPER`."""
    counts, _ = np.histogram(values, bins, (0, UPPER))
    voxels = max(values.size, 1)
    densities = counts * bins / (UPPER * voxels)
    return [float(f"{density:.4g}") for density in densities]


def plots(images: Iterable[ImageRecord]) -> list[Plot]:
    """One plot per sequence, from the images that have both histograms.

    The :data:`MOST` sites with the most such images have their own line, with the same colour in every plot.
    """
    by_sequence: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    images_of_site: Counter[str] = Counter()
    for image in images:
        pair = _pair(image)
        if pair is None:
            continue
        site = image.site or NO_SITE
        by_sequence[image.sequence][site].append(pair)
        images_of_site[site] += 1
    by_size = sorted(images_of_site, key=lambda site: (-images_of_site[site], site))
    sites_with_line = sorted(by_size[:MOST])
    colours = {site: number for number, site in enumerate(sites_with_line)}
    return [_plot(sequence, by_sequence[sequence], colours) for sequence in sorted(by_sequence)]


def _pair(image: ImageRecord) -> np.ndarray | None:
    """``(2, bins)`` densities before and after; None unless both exist and are finite."""
    before = _at_middles(image.histogram_before)
    after = _at_middles(image.histogram_after)
    pair = np.stack([before, after])
    return pair if np.isfinite(pair).all() else None


def _at_middles(histogram: Sequence[float] | None) -> np.ndarray:
    """Densities at the common bins; NaN without a histogram."""
    if histogram is None or len(histogram) == 0:
        return np.full(_BINS, np.nan)
    densities = np.asarray(histogram, float)
    numbers = np.arange(densities.size) + 0.5
    middles = numbers * UPPER / densities.size
    return np.interp(_MIDDLES, middles, densities)


def _plot(sequence: str, sites: dict[str, list[np.ndarray]], colours: dict[str, int]) -> Plot:
    """The plot of one sequence, from pairs of histograms by site."""
    means = {site: np.mean(pairs, axis=0) for site, pairs in sorted(sites.items())}
    highest = max(float(mean.max()) for mean in means.values()) or 1.0
    lines = []
    others = []
    for site, mean in means.items():
        if site not in colours:
            others.append(mean)
            continue
        before, after = mean
        paths = (_path(before, highest), _path(after, highest))
        lines.append(Line(site, colours[site], len(sites[site]), paths))
    intensities = np.arange(0, UPPER + 0.01, 0.25)
    band = None
    if others:
        band = (_band(others, 0, highest), _band(others, 1, highest))
    return Plot(
        sequence=sequence,
        lines=lines,
        others=len(others),
        band=band,
        across=[Tick(float(_x(intensity)), f"{intensity:g}") for intensity in intensities],
        up=_density_ticks(highest),
    )


def _density_ticks(highest: float) -> list[Tick]:
    """Up to five round densities from 0 to the highest."""
    rough_step = highest / 5
    exponent = math.floor(math.log10(rough_step))
    power_of_ten = 10**exponent
    round_steps = [power_of_ten * factor for factor in (1, 2, 2.5, 5, 10)]
    step = next(step for step in round_steps if step >= rough_step)
    densities = np.arange(0, highest + step / 1e6, step)
    return [Tick(float(_y(density, highest)), f"{density:g}") for density in densities]


def _x(intensity: np.ndarray | float) -> np.ndarray:
    share = np.asarray(intensity) / UPPER
    width = WIDTH - LEFT - RIGHT
    return LEFT + share * width


def _y(density: np.ndarray | float, highest: float) -> np.ndarray:
    share = np.asarray(density) / highest
    height = HEIGHT - TOP - BOTTOM
    return HEIGHT - BOTTOM - share * height


def _path(densities: np.ndarray, highest: float, intensities: np.ndarray = _MIDDLES) -> str:
    """An SVG path through these points."""
    across = _x(intensities)
    down = _y(densities, highest)
    points = [f"{x:.1f} {y:.1f}" for x, y in zip(across, down, strict=True)]
    return "M" + "L".join(points)


def _band(means: list[np.ndarray], which: int, highest: float) -> str:
    """A closed SVG path around the histograms before (``which`` is 0) or after (1) of some sites."""
    histograms = np.stack([mean[which] for mean in means])
    upper_edge = histograms.max(axis=0)
    lower_edge = histograms.min(axis=0)
    backwards = slice(None, None, -1)
    there_and_back = np.concatenate([_MIDDLES, _MIDDLES[backwards]])
    around = np.concatenate([upper_edge, lower_edge[backwards]])
    return _path(around, highest, there_and_back) + "Z"
