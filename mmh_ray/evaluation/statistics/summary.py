"""Summarises metric values per image: value, interval over subjects, and paired difference to ours."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmh_ray.evaluation.statistics.bootstrap import (
    Difference,
    Interval,
    bootstrap,
    bootstrap_statistic,
    paired_difference,
)
from mmh_ray.evaluation.statistics.metric_values import MetricValues

STATISTIC_DRAWS = 200
"""Maximum number of draws for a metric that is not a mean, because every draw computes it again."""

NO_METHODS = ("about", "differences")
"""Keys of an evaluation that are not methods."""

Entry = dict[str, float | int | None]
"""A metric in `evaluation.json`: value, low, high, n; also p for a difference, and chance levels for a probe."""


def interval(metric: MetricValues, draws: int, seed: int = 0) -> Interval:
    """The metric's value with its interval over subjects."""
    if metric.reduce is not None:
        return bootstrap_statistic(metric.of, metric.subjects, seed, min(draws, STATISTIC_DRAWS))
    return bootstrap(metric.values, metric.subjects, seed, draws, metric.strata)


def difference(
    ours: MetricValues, other: MetricValues, draws: int, seed: int = 0, floor: float = -math.inf
) -> Difference | None:
    """Ours minus the other method, over the units that both have; None if they share none.

    Values below ``floor`` count as ``floor``. p is from the sign-flip test if the value is a mean, else NaN.
    """
    units_of_other = set(other.units)
    units = [unit for unit in ours.units if unit in units_of_other]
    if not units:
        return None
    a = ours.only(units)
    b = other.only(units)
    if a.reduce is None:
        return paired_difference(
            a=a.values, b=b.values, subjects=a.subjects, seed=seed, draws=draws, strata=a.strata, floor=floor
        )

    def floored_difference(rows: np.ndarray) -> float:
        return _floored(a.of(rows), floor) - _floored(b.of(rows), floor)

    estimate = bootstrap_statistic(floored_difference, a.subjects, seed, min(draws, STATISTIC_DRAWS))
    return Difference(estimate.value, estimate.low, estimate.high, estimate.n, p=math.nan)


def entry(estimate: Interval | Difference, guessed: Mapping[str, float] | None = None) -> Entry | None:
    """The JSON entry of a metric; None if it has no value. Numbers that are not finite become null."""
    if not math.isfinite(estimate.value):
        return None
    numbers: Entry = {}
    for name, number in estimate._asdict().items():
        if isinstance(number, int):
            numbers[name] = number
        else:
            numbers[name] = float(number) if math.isfinite(number) else None  # float: JSON has no NumPy scalars
    if guessed:
        numbers |= guessed
    return numbers


def by_sequence(evaluation: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Only the values, ``{sequence: {method: {metric: value}}}``."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for method, sequences in evaluation.items():
        if method in NO_METHODS:
            continue
        for sequence, entries in sequences.items():
            of_method = {metric: entry["value"] for metric, entry in entries.items()}
            values.setdefault(sequence, {})[method] = of_method
    return {sequence: values[sequence] for sequence in sorted(values)}


def site_means(metrics: Mapping[str, MetricValues], sites: Mapping[str, str]) -> dict[str, dict[str, float | int]]:
    """``{site: {metric: mean over its images, "n": number of images}}``, for metrics with images as units.

    Parameters
    ----------
    sites:
        Site of each image.
    """
    means: dict[str, dict[str, float | int]] = defaultdict(dict)
    images: set[str] = set()
    for name, metric in metrics.items():
        images.update(metric.units)
        metric_means = metric.means(lambda image_id: [sites[image_id]])
        for site, mean in metric_means.items():
            means[site][name] = mean
    counts = Counter(sites[image_id] for image_id in images)
    for site, site_row in means.items():
        site_row["n"] = counts[site]
    return dict(sorted(means.items()))


def _floored(value: float, floor: float) -> float:
    """The value, but at least the floor; NaN stays NaN."""
    return floor if value < floor else value
