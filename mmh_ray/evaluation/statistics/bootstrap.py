"""Computes intervals and paired differences by bootstrap over subjects.

Images of one person are not independent, so persons are drawn with replacement, each with all images (the cluster
bootstrap; Davison & Hinkley 1997, section 3.8). Values that are not finite are left out. Intervals are the 2.5th to
97.5th percentile of the draws (Efron 1979). For statistics that compare images with each other, half of the people are
drawn instead, so that no image is compared with its own copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_TAIL_PERCENT = 2.5


class Interval(NamedTuple):
    """A value with its 95 % interval and the number of subjects."""

    value: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """A paired difference ``mean(a − b)``: 95 % interval, number of subjects, p of a two-sided sign-flip test."""

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

    The interval covers the choice of people at these sites. Cannot see: the choice of sites; randomness in a model's
    training. With one subject, low and high equal the value, so look at ``n``.

    Parameters
    ----------
    values, subjects:
        ``(n,)`` value and subject of each image.
    strata:
        ``(n,)``; if given, the result is the mean of the strata's means. For per-image correctness with sites as
        strata, this is balanced accuracy.

    >>> bootstrap([1.0, 3.0], ["a", "b"]).value
    2.0
    """
    sums, counts = _per_subject(values, subjects, strata)
    subject_count = len(sums)
    everybody = np.ones((1, subject_count))
    value = float(_strata_mean(everybody @ sums, everybody @ counts)[0])
    drawn = _draw_subjects(subject_count, seed, draws)
    low, high = _limits(_strata_mean(drawn @ sums, drawn @ counts))
    return Interval(value, low, high, subject_count)


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float], subjects: Sequence[str], seed: int = 0, draws: int = 200
) -> Interval:
    """Any statistic of a cohort with its interval over subjects, by half-sampling.

    ``statistic(rows)`` gets the indices of the images of half the people, drawn without replacement; draws in which
    it is not finite are left out. For a mean, half samples have the variance of the bootstrap (McCarthy 1969; Politis
    & Romano 1994). Nobody is drawn twice, because a copy always agrees with itself, which would raise every statistic
    of agreement between images. Use it for statistics that are not means (adjusted Rand index, correlation with age);
    :func:`bootstrap` is faster for means. Cannot see: bias of statistics that depend on the number of images (W1 of
    pooled sites); their interval is shifted towards the value for fewer images.
    """
    names, codes = np.unique(np.asarray(subjects, str), return_inverse=True)
    rows_by_subject = [np.flatnonzero(codes == code) for code in range(len(names))]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        order = rng.permutation(len(names))
        half = order[: _half(len(names), rng)]
        rows = np.concatenate([rows_by_subject[code] for code in half])
        drawn.append(statistic(np.sort(rows)))  # sorted, so that the order of the draw cannot matter
    value = float(statistic(np.arange(len(codes))))
    low, high = _limits(np.array(drawn))
    return Interval(value, low, high, len(names))


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

    Row i of both is the same image with two methods; images without a finite value in both are left out. A mean below
    ``floor`` counts as ``floor``, in the value, in every draw and in the test, because below chance is no better than
    chance.

    The test flips the sign of each subject's differences at random,
    ``p = (1 + #{|flipped| ≥ |observed|}) / (1 + draws)`` (Pitman 1937; Phipson & Smyth 2010). So p cannot be much below
    ``2 / 2^n``: few subjects prove little. Cannot see: whether the difference matters.
    """
    first = np.asarray(a, float)
    second = np.asarray(b, float)
    gap = first - second
    middle = np.where(np.isfinite(gap), (first + second) / 2, np.nan)
    gap_sums, counts = _per_subject(gap, subjects, strata)
    middle_sums, _ = _per_subject(middle, subjects, strata)

    def floored_difference(weights: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Difference of the floored means over weighted people; a and b are swapped for people with flip −1."""
        weighted_counts = weights @ counts
        weighted_gap = flips @ gap_sums
        if np.isneginf(floor):
            return _strata_mean(weighted_gap, weighted_counts)
        weighted_middle = weights @ middle_sums
        mean_a = _strata_mean(weighted_middle + weighted_gap / 2, weighted_counts)
        mean_b = _strata_mean(weighted_middle - weighted_gap / 2, weighted_counts)
        return np.maximum(mean_a, floor) - np.maximum(mean_b, floor)

    subject_count = len(gap_sums)
    everybody = np.ones((1, subject_count))
    value = float(floored_difference(everybody, everybody)[0])
    drawn = _draw_subjects(subject_count, seed, draws)
    low, high = _limits(floored_difference(drawn, drawn))
    # a separate random stream, so that p does not depend on the draws of the interval
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=(draws, subject_count))
    flipped = floored_difference(np.ones((draws, subject_count)), signs)
    # the tolerance makes flipping all signs count as equal to the observed difference, despite rounding
    is_as_far = np.abs(flipped) >= abs(value) * (1 - 1e-9)
    p = float((1 + is_as_far.sum()) / (1 + draws))
    return Difference(value, low, high, subject_count, p)


def _per_subject(
    values: Sequence[float] | np.ndarray, subjects: Sequence[str], strata: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the finite values, each ``(subjects, strata)``."""
    numbers = np.asarray(values, float)
    known = np.isfinite(numbers)
    subject_names, row = np.unique(np.asarray(subjects, str)[known], return_inverse=True)
    stratum_of_value = np.zeros(int(known.sum()), str) if strata is None else np.asarray(strata, str)[known]
    stratum_names, column = np.unique(stratum_of_value, return_inverse=True)
    shape = (len(subject_names), len(stratum_names))
    sums = np.zeros(shape)
    counts = np.zeros(shape)
    np.add.at(sums, (row, column), numbers[known])
    np.add.at(counts, (row, column), 1)
    return sums, counts


def _half(count: int, rng: np.random.Generator) -> int:
    """Half of the people, at least one; an odd number is rounded up or down at random."""
    one_more = int(rng.integers(2))
    half = (count + one_more) // 2
    return max(1, half)


def _draw_subjects(subjects: int, seed: int, draws: int) -> np.ndarray:
    """Number of times that each subject is drawn, ``(draws, subjects)``."""
    if not subjects:
        return np.zeros((draws, 0))
    rng = np.random.default_rng(seed)
    return rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=draws).astype(float)


def _strata_mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``(draws,)`` mean of the strata's means, from their ``(draws, strata)`` sums and counts.

    Strata without drawn people are left out.
    """
    is_present = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=is_present)
    strata_present = is_present.sum(axis=1)
    unknown = np.full(len(sums), np.nan)
    return np.divide(means.sum(axis=1), strata_present, out=unknown, where=strata_present > 0)


def _limits(drawn: np.ndarray) -> tuple[float, float]:
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    return float(low), float(high)
