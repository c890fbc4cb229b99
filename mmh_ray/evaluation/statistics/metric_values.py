"""Holds the values of one metric per image, as needed for resampling subjects and comparing methods."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class MetricValues:
    """One metric of one method and sequence, unit by unit. A unit is an image or a pair of images.

    Attributes
    ----------
    values:
        ``(n,)`` one number per unit, or ``(n, k)`` inputs of ``reduce``.
    units, subjects:
        Name (an image's id, or two ids separated by a space) and subject of each unit.
    strata:
        Sites, if the value is the mean of the sites' means (balanced accuracy).
    reduce:
        Computes the value of some units from their ``values`` and ``labels``; None: their mean.
    labels:
        A label per unit for ``reduce``.
    guessed:
        ``chance``, the mean result of guessing, and ``chance_high``, its 95th percentile; may be empty.
    shown:
        The value of each unit, if ``values`` holds something else.
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
        """``(n,)`` the value of each unit; None if units have no values."""
        return self.values if self.reduce is None else self.shown

    def only(self, units: Iterable[str]) -> MetricValues:
        """The metric with these units only, in this order."""
        row_of_unit = {unit: row for row, unit in enumerate(self.units)}
        rows = [row_of_unit[unit] for unit in units]

        def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(names[row] for row in rows)

        return replace(
            self,
            values=self.values[rows],
            units=chosen(self.units),
            subjects=chosen(self.subjects),
            strata=None if self.strata is None else chosen(self.strata),
            labels=None if self.labels is None else chosen(self.labels),
            shown=None if self.shown is None else self.shown[rows],
        )

    def means(self, groups_of: Callable[[str], Iterable[str]]) -> dict[str, float]:
        """Mean value of the units in each group, where ``groups_of`` names the groups of a unit.

        Empty if units have no values.
        """
        if self.per_unit is None:
            return {}
        values: dict[str, list[float]] = defaultdict(list)
        for unit, value in zip(self.units, self.per_unit.tolist(), strict=True):
            for group in groups_of(unit):
                values[group].append(value)
        return {group: float(np.mean(of_group)) for group, of_group in values.items()}

    def of(self, rows: np.ndarray) -> float:
        """The value of some rows, computed by ``reduce``."""
        assert self.reduce is not None
        assert self.labels is not None
        return self.reduce(self.values[rows], np.asarray(self.labels)[rows])


ValuesByMetric = dict[str, MetricValues]
"""One method's values by metric."""
