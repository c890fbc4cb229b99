"""Intervals and paired differences by bootstrap over subjects.

Images of one person are not independent: what is drawn with replacement is the person, with all images (the cluster bootstrap; Davison &
Hinkley 1997, section 3.8). Values that are not finite are left out. Intervals are the 2.5th to 97.5th percentile of the draws (Efron 1979).
Figures that compare images with each other take half of the people instead, so that no image meets its own copy.
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
    """Any figure of a cohort with its interval over subjects, by half-sampling.

    ``statistic(rows)`` gets the indices of the images of half the people, drawn without replacement; draws in which it is not finite are
    left out. Of a mean, half samples have the variance of the bootstrap (McCarthy 1969; Politis & Romano 1994), and nobody is drawn twice:
    a copy always agrees with itself, which would raise every figure of agreement between images. Meant for figures that are no mean over
    images (adjusted Rand index, correlation with age); :func:`bootstrap` is the fast one. Cannot see: bias of figures that depend on how
    many images there are (W1 of pooled sites): their interval lies somewhat on the side of few.
    """
    names, place = np.unique(np.asarray(subjects, str), return_inverse=True)
    rows = [np.flatnonzero(place == index) for index in range(len(names))]
    rng = np.random.default_rng(seed)
    halves = (rng.permutation(len(rows))[: _half(len(rows), rng)] for _ in range(draws))
    drawn = np.array([statistic(np.sort(np.concatenate([rows[i] for i in half]))) for half in halves])
    return Interval(float(statistic(np.arange(len(place)))), *_limits(drawn), len(names))


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    subjects: Sequence[str],
    seed: int = 0,
    draws: int = 2000,
    strata: Sequence[str] | None = None,
    floor: float = -np.inf,
) -> Difference:
    """Mean of ``a − b`` image by image with its interval over subjects, and p of the sign-flip test.

    A mean below ``floor`` counts as ``floor``, in the value, in every draw and in the test: less than chance is no less than chance.

    Row i of both is the same image under two methods; images without a finite value in both are left out. The test flips the sign of every
    subject's differences at random, ``p = (1 + #{|flipped| ≥ |seen|}) / (1 + draws)`` (Pitman 1937; Phipson & Smyth 2010), so that p cannot
    fall below ``2 / 2^n`` by luck: few subjects can prove little. Cannot see: whether the difference matters.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    apart, counts = _per_subject(first - second, subjects, strata)
    middle, _ = _per_subject(np.where(np.isfinite(first - second), (first + second) / 2, np.nan), subjects, strata)

    def between(weights: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Difference of the floored means of weighted people, those of flip −1 with a and b exchanged."""
        totals, numbers, gap = weights @ middle, weights @ counts, flips @ apart
        if np.isneginf(floor):
            return _strata_mean(gap, numbers)
        one, other = (np.maximum(_strata_mean(totals + side * gap / 2, numbers), floor) for side in (1, -1))
        return one - other

    n = len(apart)
    whole, drawn = np.ones((1, n)), _drawn(n, seed, draws)
    value = float(between(whole, whole)[0])
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=(draws, n))
    as_far = np.abs(between(np.ones((draws, n)), signs)) >= abs(value) * (1 - 1e-9)
    return Difference(value, *_limits(between(drawn, drawn)), n, float((1 + as_far.sum()) / (1 + draws)))


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


def _half(count: int, rng: np.random.Generator) -> int:
    """Half of the people, at least one; of an odd number one more or one less by chance."""
    return max(1, (count + int(rng.integers(2))) // 2)


def _drawn(subjects: int, seed: int, draws: int) -> np.ndarray:
    """How often each subject is drawn, ``(draws, subjects)``."""
    if not subjects:
        return np.zeros((draws, 0))
    return np.random.default_rng(seed).multinomial(subjects, np.full(subjects, 1 / subjects), size=draws).astype(float)


def _means(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over strata of the strata's means, ``(draws,)``; a stratum that nobody drawn belongs to is left out."""
    return _strata_mean(weights @ sums, weights @ counts)


def _strata_mean(totals: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """``(draws,)`` mean of the strata's means from their ``(draws, strata)`` sums and numbers."""
    means = np.divide(totals, numbers, out=np.zeros_like(totals), where=numbers > 0)
    present = (numbers > 0).sum(axis=1)
    return np.divide(means.sum(axis=1), present, out=np.full(len(totals), np.nan), where=present > 0)


def _limits(drawn: np.ndarray) -> tuple[float, float]:
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    return float(low), float(high)
