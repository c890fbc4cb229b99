"""Intervals and paired differences by bootstrap over subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A figure with its 95 % interval and the number of subjects."""

    value: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """A paired difference ``mean(a − b)`` with its 95 % interval, subjects, and two-sided p of a sign-flip test over subjects."""

    value: float
    low: float
    high: float
    n: int
    p: float


def bootstrap(
    values: Sequence[float] | np.ndarray,
    subjects: Sequence[str],
    seed: int = 0,
    draws: int = 2000,
    strata: Sequence[str] | None = None,
) -> Interval:
    """Mean of per-image values, resampling subjects; with ``strata`` the mean of the strata's means (balanced accuracy by site)."""
    raise NotImplementedError


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float], subjects: Sequence[str], seed: int = 0, draws: int = 200
) -> Interval:
    """Any ``statistic(rows)`` of the chosen rows, resampling subjects."""
    raise NotImplementedError


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    subjects: Sequence[str],
    seed: int = 0,
    draws: int = 2000,
    strata: Sequence[str] | None = None,
) -> Difference:
    """``a − b`` image by image (row i of both is the same image), resampling subjects."""
    raise NotImplementedError
