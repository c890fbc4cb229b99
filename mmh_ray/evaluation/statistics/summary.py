"""From figures of single images to what a table shows: value, interval over subjects, paired difference to ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmh_ray.evaluation.statistics.bootstrap import (
    Difference,
    Interval,
    bootstrap,
    bootstrap_statistic,
    paired_difference,
)

STATISTIC_DRAWS = 200
"""Most draws for what is not a mean: every draw computes the figure anew."""

NO_METHODS = ("about", "differences")
"""Keys of an evaluation that are no methods."""

Entry = dict[str, float | int | None]


@dataclass(frozen=True, eq=False)
class Figure:
    """One measure of one method and sequence, unit by unit, so that subjects can be drawn again and methods compared.

    Attributes
    ----------
    values:
        ``(n,)`` a number per unit, or ``(n, k)`` what ``reduce`` needs of it.
    units, subjects:
        What the unit is (an image, or a pair of images) and whose.
    strata:
        Sites, where the figure is the mean of the sites' means (balanced accuracy).
    reduce:
        The figure of some units' values and ``labels``; None: their mean.
    labels:
        A label per unit for ``reduce``.
    guessed:
        ``chance``, what a guess reaches, and ``chance_high``, what 95 of 100 guessers stay below; empty where neither says something.
    shown:
        The unit's own figure, where ``values`` holds something else.
    """

    values: np.ndarray
    units: tuple[str, ...]
    subjects: tuple[str, ...]
    strata: tuple[str, ...] | None = None
    reduce: Callable[[np.ndarray, np.ndarray], float] | None = None
    labels: tuple[str, ...] | None = None
    guessed: Mapping[str, float] = field(default_factory=dict)
    shown: np.ndarray | None = None

    @property
    def per_unit(self) -> np.ndarray | None:
        """``(n,)`` the unit's own figure; None where a unit has none."""
        return self.values if self.reduce is None else self.shown

    def only(self, units: Iterable[str]) -> Figure:
        """The same of these units, in their order."""
        place = {unit: i for i, unit in enumerate(self.units)}
        rows = [place[unit] for unit in units]

        def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(names[i] for i in rows)

        return replace(
            self,
            values=self.values[rows],
            units=chosen(self.units),
            subjects=chosen(self.subjects),
            strata=None if self.strata is None else chosen(self.strata),
            labels=None if self.labels is None else chosen(self.labels),
            shown=None if self.shown is None else self.shown[rows],
        )

    def of(self, rows: np.ndarray) -> float:
        """The figure of some rows, by ``reduce``."""
        assert self.reduce is not None
        assert self.labels is not None
        return self.reduce(self.values[rows], np.asarray(self.labels)[rows])


def interval(figure: Figure, draws: int, seed: int = 0) -> Interval:
    """The figure with its interval over subjects."""
    if figure.reduce is not None:
        return bootstrap_statistic(figure.of, figure.subjects, seed, min(draws, STATISTIC_DRAWS))
    return bootstrap(figure.values, figure.subjects, seed, draws, figure.strata)


def difference(ours: Figure, other: Figure, draws: int, seed: int = 0, floor: float = -math.inf) -> Difference | None:
    """Ours minus the other over the units that both have, what is below ``floor`` taken for it; None where they share none.

    The p value is that of the sign-flip test where the figure is a mean, NaN elsewhere.
    """
    shared = set(other.units)
    units = [unit for unit in ours.units if unit in shared]
    if not units:
        return None
    a, b = ours.only(units), other.only(units)
    if a.reduce is None:
        return paired_difference(a.values, b.values, a.subjects, seed, draws, a.strata, floor)
    draws = min(draws, STATISTIC_DRAWS)
    found = bootstrap_statistic(
        lambda rows: _above(floor, a.of(rows)) - _above(floor, b.of(rows)), a.subjects, seed, draws
    )
    return Difference(*found, math.nan)


def entry(found: Interval | Difference, guessed: Mapping[str, float] | None = None) -> Entry | None:
    """What JSON holds of a figure; None where it has no value, null for an end that is not known."""
    if not math.isfinite(found.value):
        return None
    made: Entry = {name: _plain(number) for name, number in found._asdict().items()}
    return made | dict(guessed or {})


def by_sequence(evaluation: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Values alone, ``{sequence: {method: {measure: value}}}``."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method, sequences in evaluation.items():
        if method not in NO_METHODS:
            for sequence, measures in sequences.items():
                found.setdefault(sequence, {})[method] = {name: own["value"] for name, own in measures.items()}
    return {sequence: found[sequence] for sequence in sorted(found)}


def site_means(figures: Mapping[str, Figure], sites: Mapping[str, str]) -> dict[str, dict[str, float | int]]:
    """``{site: {measure: mean over its images, "n": images}}`` of figures whose units are images.

    Parameters
    ----------
    sites:
        Site by image.
    """
    values: dict[str, dict[str, list[float]]] = {}
    images: dict[str, set[str]] = {}
    for name, figure in figures.items():
        assert figure.per_unit is not None
        for unit, value in zip(figure.units, figure.per_unit, strict=True):
            site = sites[unit]
            values.setdefault(site, {}).setdefault(name, []).append(float(value))
            images.setdefault(site, set()).add(unit)
    found: dict[str, dict[str, float | int]] = {}
    for site in sorted(values):
        found[site] = {name: float(np.mean(own)) for name, own in values[site].items()}
        found[site]["n"] = len(images[site])
    return found


def _above(floor: float, value: float) -> float:
    """The value or the floor; NaN stays NaN."""
    return floor if value < floor else value


def _plain(number: float | int) -> float | int | None:
    if isinstance(number, int):
        return number
    return float(number) if math.isfinite(number) else None
