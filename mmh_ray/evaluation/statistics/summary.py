"""From the values of single images to what a table shows: value, interval over subjects, paired difference to ours."""

from __future__ import annotations

import math
from collections import defaultdict
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
"""Most draws for what is not a mean: every draw computes the value anew."""

NO_METHODS = ("about", "differences")
"""Keys of an evaluation that are no methods."""

Entry = dict[str, float | int | None]
"""Of a metric in `evaluation.json`: value, low, high, n.

A difference also has p, and a probe what guessing reaches.
"""


def interval(metric: MetricValues, draws: int, seed: int = 0) -> Interval:
    """The metric's value with its interval over subjects."""
    if metric.reduce is not None:
        return bootstrap_statistic(metric.of, metric.subjects, seed, min(draws, STATISTIC_DRAWS))
    return bootstrap(metric.values, metric.subjects, seed, draws, metric.strata)


def difference(
    ours: MetricValues, other: MetricValues, draws: int, seed: int = 0, floor: float = -math.inf
) -> Difference | None:
    """Ours minus the other over the units that both have; None where they share none.

    Values below ``floor`` count as ``floor``. The p value is that of the sign-flip test where the value is a mean,
    NaN elsewhere.
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
    """What JSON holds of a metric; None where it has no value, null for an end that is not known."""
    if not math.isfinite(estimate.value):
        return None
    numbers: Entry = {}
    for name, number in estimate._asdict().items():
        if isinstance(number, int):
            numbers[name] = number
        else:
            numbers[name] = float(number) if math.isfinite(number) else None
    return numbers | dict(guessed or {})


def by_sequence(evaluation: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Values alone, ``{sequence: {method: {metric: value}}}``."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for method, sequences in evaluation.items():
        if method in NO_METHODS:
            continue
        for sequence, entries in sequences.items():
            of_method = {metric: entry["value"] for metric, entry in entries.items()}
            values.setdefault(sequence, {})[method] = of_method
    return {sequence: values[sequence] for sequence in sorted(values)}


def site_means(metrics: Mapping[str, MetricValues], sites: Mapping[str, str]) -> dict[str, dict[str, float | int]]:
    """``{site: {metric: mean over its images, "n": images}}`` of metrics whose units are images.

    Parameters
    ----------
    sites:
        Site by image.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    images: dict[str, set[str]] = defaultdict(set)
    for name, metric in metrics.items():
        assert metric.per_unit is not None
        for image_id, value in zip(metric.units, metric.per_unit, strict=True):
            site = sites[image_id]
            values[site][name].append(float(value))
            images[site].add(image_id)
    means: dict[str, dict[str, float | int]] = {}
    for site, values_of_site in sorted(values.items()):
        of_site: dict[str, float | int] = {}
        for name, numbers in values_of_site.items():
            of_site[name] = float(np.mean(numbers))
        means[site] = of_site | {"n": len(images[site])}
    return means


def _floored(value: float, floor: float) -> float:
    """The value or the floor; NaN stays NaN."""
    return floor if value < floor else value
