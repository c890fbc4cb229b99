"""One method's images of a sequence: every figure that can be had of them, and what pictures need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmh_ray.errors import DataError
from mmh_ray.evaluation.baselines.feature_baselines import FEATURE_METHODS, harmonize_features, traits
from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.evaluation.inputs.scans import Row
from mmh_ray.evaluation.metrics.cohort_metrics import Figures, Population, population_figures
from mmh_ray.evaluation.metrics.per_image import IMAGE_MEASURES, LABEL_RETEST, PAIR_MEASURES, RETEST, Bulk, Clock
from mmh_ray.evaluation.metrics.registry import BEST_KNOWN, RAW
from mmh_ray.evaluation.metrics.subject import Bulks, Training
from mmh_ray.evaluation.probes import clustering
from mmh_ray.evaluation.statistics.summary import Figure

LEAST_MAPPED, MOST_MAPPED = 8, 1000
"""Images between which a map of the features is drawn; of more, as many evenly chosen ones."""
LEAST_UMAP = 30
"""Images below which UMAP, which looks at 15 neighbours, shows nothing."""
HISTOGRAM_POINTS = 4096
"""Points of a site's mean quantile function in the picture of histograms."""


class Kept(NamedTuple):
    """What a case leaves behind: rows of its images and of their pairs, and what the cohort's measures need, all methods together."""

    images: list[Row]
    pairs: list[Row]
    bulks: Bulks


class Gathered(NamedTuple):
    """One method's part of all cases: rows by image, rows by pair, and row for row what the method's and the raw images left."""

    rows: list[Row]
    pairs: list[Row]
    bulks: list[Bulk]
    raw: list[Bulk]


class Places(NamedTuple):
    """Images on a map: ``(n, 2)`` coordinates, sites and subjects."""

    places: np.ndarray
    sites: tuple[str, ...]
    subjects: tuple[str, ...]


class Shown(NamedTuple):
    """What pictures need of a method: places by map (``map``, ``umap``), and a site's mean quantile function by site."""

    maps: Mapping[str, Places]
    quantiles: Mapping[str, np.ndarray]


def is_pictured(method: str) -> bool:
    """Raw, the best known simple method, and every archive."""
    return method in (RAW, BEST_KNOWN) or method not in (*BASELINES, *FEATURE_METHODS)


def gather(cases: Iterable[Kept], method: str) -> Gathered:
    """The method's part of the cases, in the order of the images' names; one case is looked at at a time."""
    rows: list[Row] = []
    pairs: list[Row] = []
    bulks: dict[str, tuple[Bulk, Bulk]] = {}
    for case in cases:
        own = [row for row in case.images if row["method"] == method]
        rows += own
        pairs += [row for row in case.pairs if row["method"] == method]
        bulks |= {
            row["image_id"]: (case.bulks[method, row["image_id"]], case.bulks[RAW, row["image_id"]]) for row in own
        }
    rows.sort(key=lambda row: row["image_id"])
    pairs.sort(key=lambda row: row["images"])
    both = [bulks[row["image_id"]] for row in rows]
    return Gathered(rows, pairs, [own for own, _ in both], [raw for _, raw in both])


def image_figures(found: Gathered) -> Figures:
    """Figures that are means over images or over pairs of images."""
    figures: Figures = {}
    for rows, measures in ((found.rows, IMAGE_MEASURES), (found.pairs, (*PAIR_MEASURES, RETEST, LABEL_RETEST))):
        for name in measures:
            if known := [row for row in rows if row[name] is not None]:
                figures[name] = figure_of(name, known)
    return figures


def cohort_figures(
    method: str, found: Gathered, training: Sequence[tuple[Row, Training]], seed: int, clock: Clock
) -> tuple[Figures, Shown]:
    """Figures that only the whole cohort has, and what pictures need.

    Parameters
    ----------
    method:
        The method that was gathered, or one of ``FEATURE_METHODS`` with what was gathered of raw.
    training:
        Manifest row and facts of training images, on which methods on features are fitted.

    Raises
    ------
    DataError
        If features cannot be harmonized.
    """
    rows, names = found.rows, sorted(found.raw[0].features)
    before, after = (_matrix([bulk.features for bulk in own], names) for own in (found.raw, found.bulks))
    bulks = found.bulks
    if method in FEATURE_METHODS:
        after = clock.run(method, method, _adjusted, method, before, rows, training, names)
        if after is None:
            raise DataError("; ".join(clock.said()), "features that can be adjusted", "Add training subjects.")
        bulks = []
    slices = [bulk.slices for bulk in found.raw]
    raw_slices = np.stack(slices) if bulks and all(own is not None for own in slices) else None  # type: ignore[arg-type]
    figures = population_figures(Population(method, rows, after, before, bulks, raw_slices), seed, clock)
    maps = _maps(method, rows, clustering.standardise(after), seed, clock) if is_pictured(method) else {}
    return figures, Shown(maps, _mean_quantiles(rows, bulks))


def figure_of(name: str, rows: Sequence[Row]) -> Figure:
    """A mean over images, or over pairs named by both images."""
    units = tuple(row.get("image_id") or " ".join(row["images"]) for row in rows)
    return Figure(np.array([row[name] for row in rows], dtype=np.float64), units, tuple(row["subject"] for row in rows))


def _maps(method: str, rows: Sequence[Row], features: np.ndarray, seed: int, clock: Clock) -> dict[str, Places]:
    kinds = {"map": (LEAST_MAPPED, clustering.tsne), "umap": (LEAST_UMAP, clustering.umap)}
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_MAPPED)).round().astype(int))
    sites, subjects = (tuple(rows[i][name] for i in chosen) for name in ("site", "subject"))
    made = {}
    for kind, (least, function) in kinds.items():
        if (
            len(rows) >= least
            and (places := clock.run(function.__name__, method, function, features[chosen], seed)) is not None
        ):
            made[kind] = Places(places, sites, subjects)
    return made


def _mean_quantiles(rows: Sequence[Row], bulks: Sequence[Bulk]) -> dict[str, np.ndarray]:
    """By site, the mean over images of the quantile function of scaled brain intensities."""
    groups: dict[str, list[np.ndarray]] = defaultdict(list)
    for row, bulk in zip(rows, bulks, strict=bool(bulks)):
        groups[row["site"]].append(bulk.quantiles)
    return {site: _dense(np.mean(own, axis=0)) for site, own in sorted(groups.items())}


def _dense(quantiles: np.ndarray) -> np.ndarray:
    ends = np.linspace(0, 1, quantiles.size), np.linspace(0, 1, HISTOGRAM_POINTS)
    return np.interp(ends[1], ends[0], quantiles)


def _adjusted(
    method: str, before: np.ndarray, rows: Sequence[Row], training: Sequence[tuple[Row, Training]], names: Sequence[str]
) -> np.ndarray:
    """Features of the scored images after a harmonization of features that was fitted on training images alone."""
    learned = _matrix([facts.features for _, facts in training], names)
    everybody = [*(row for row, _ in training), *rows]
    train = np.arange(len(everybody)) < len(training)
    sites, features = [row["site"] for row in everybody], np.concatenate([learned, before])
    return harmonize_features(method, features, sites, train, traits(everybody, train))[len(training) :]


def _matrix(features: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """``(n, F)``; 0 where an image has no such feature."""
    table = np.array([[own.get(name, 0.0) for name in names] for own in features], dtype=np.float64)
    return np.nan_to_num(table, nan=0.0, posinf=0.0, neginf=0.0)
