"""Intervals and paired differences by bootstrap over subjects.

Images of one person are not independent: what is drawn with replacement is the person, with all images (the cluster bootstrap; Davison &
Hinkley 1997, section 3.8). Values that are not finite are left out. Intervals are the 2.5th to 97.5th percentile of the draws (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_TAIL_PERCENT = 2.5


class Interval(NamedTuple):
    """A figure with its 95 % interval and the number of subjects."""

    value: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """A paired difference ``mean(a − b)`` with its 95 % interval, the number of subjects, and the two-sided p of a sign-flip test."""

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
    """Mean of per-image values with its interval over subjects.

    Cannot see: sites drawn anew (the interval is for more people of these sites), nor the chance in a model's own training. With one
    subject low and high are the value itself: judge by ``n``.

    Parameters
    ----------
    values, subjects:
        ``(n,)`` figure and subject of each image.
    strata:
        ``(n,)``: the figure is then the mean of the strata's means. With per-image correctness and sites, balanced accuracy.

    >>> bootstrap([1.0, 3.0], ["a", "b"]).value
    2.0
    """
    sums, counts = _per_subject(values, subjects, strata)
    drawn = _means(sums, counts, _drawn(len(sums), seed, draws))
    return Interval(float(_means(sums, counts, np.ones((1, len(sums))))[0]), *_limits(drawn), len(sums))


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float], subjects: Sequence[str], seed: int = 0, draws: int = 200
) -> Interval:
    """Any figure of a cohort with its interval over subjects.

    ``statistic(rows)`` gets the indices of the chosen images, those of a person drawn twice twice; draws in which it is not finite are left
    out. Meant for figures that are no mean over images (adjusted Rand index, correlation with age); :func:`bootstrap` is the fast one.
    """
    names, place = np.unique(np.asarray(subjects, str), return_inverse=True)
    rows = [np.flatnonzero(place == index) for index in range(len(names))]
    rng = np.random.default_rng(seed)
    chosen = (np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(draws))
    drawn = np.array([statistic(own) for own in chosen])
    return Interval(float(statistic(np.arange(len(place)))), *_limits(drawn), len(names))


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    subjects: Sequence[str],
    seed: int = 0,
    draws: int = 2000,
    strata: Sequence[str] | None = None,
) -> Difference:
    """Mean of ``a − b`` image by image with its interval over subjects, and p of the sign-flip test.

    Row i of both is the same image under two methods; images without a finite value in both are left out. The test flips the sign of every
    subject's differences at random, ``p = (1 + #{|flipped| ≥ |seen|}) / (1 + draws)`` (Pitman 1937; Phipson & Smyth 2010), so that p cannot
    fall below ``2 / 2^n`` by luck: few subjects can prove little. Cannot see: whether the difference matters.
    """
    difference = np.asarray(a, float) - np.asarray(b, float)
    value, low, high, n = bootstrap(difference, subjects, seed, draws, strata)
    sums, counts = _per_subject(difference, subjects, strata)
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=(draws, n))
    totals = counts.sum(axis=0)
    flipped = np.mean((signs @ sums)[:, totals > 0] / totals[totals > 0], axis=1)
    as_far = np.abs(flipped) >= abs(value) * (1 - 1e-9)
    return Difference(value, low, high, n, float((1 + as_far.sum()) / (1 + draws)))


def _per_subject(
    values: Sequence[float] | np.ndarray, subjects: Sequence[str], strata: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and numbers of the finite values, each ``(subjects, strata)``."""
    numbers = np.asarray(values, float)
    known = np.isfinite(numbers)
    names, row = np.unique(np.asarray(subjects, str)[known], return_inverse=True)
    layers = np.asarray(strata, str)[known] if strata is not None else np.zeros(int(known.sum()), str)
    groups, column = np.unique(layers, return_inverse=True)
    sums, counts = np.zeros((2, len(names), len(groups)))
    np.add.at(sums, (row, column), numbers[known])
    np.add.at(counts, (row, column), 1)
    return sums, counts


def _drawn(subjects: int, seed: int, draws: int) -> np.ndarray:
    """How often each subject is drawn, ``(draws, subjects)``."""
    if not subjects:
        return np.zeros((draws, 0))
    return np.random.default_rng(seed).multinomial(subjects, np.full(subjects, 1 / subjects), size=draws).astype(float)


def _means(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over strata of the strata's means, ``(draws,)``; a stratum that nobody drawn belongs to is left out."""
    totals, numbers = weights @ sums, weights @ counts
    means = np.divide(totals, numbers, out=np.zeros_like(totals), where=numbers > 0)
    present = (numbers > 0).sum(axis=1)
    return np.divide(means.sum(axis=1), present, out=np.full(len(weights), np.nan), where=present > 0)


def _limits(drawn: np.ndarray) -> tuple[float, float]:
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    return float(low), float(high)
