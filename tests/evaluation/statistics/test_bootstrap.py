"""Intervals agree with scipy, and resampling people instead of images makes a difference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from mmh_ray.evaluation.probes.clustering import agreement
from mmh_ray.evaluation.statistics.bootstrap import bootstrap, bootstrap_statistic, paired_difference

pytestmark = pytest.mark.fast


def test_one_image_a_subject_is_scipys_percentile_bootstrap(rng):
    values = rng.gamma(2, size=40)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = bootstrap(values, [f"s{i}" for i in range(40)], draws=4000)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    assert found.n == 40


def test_copies_of_a_subjects_image_do_not_narrow_the_interval(rng):
    values = rng.normal(size=12)
    once = bootstrap(values, [f"s{i}" for i in range(12)])
    often = bootstrap(np.repeat(values, 10), np.repeat([f"s{i}" for i in range(12)], 10))
    assert often == pytest.approx(once)
    pretended = bootstrap(np.repeat(values, 10), [str(i) for i in range(120)])
    assert pretended.high - pretended.low < 0.5 * (once.high - once.low)


def test_strata_give_balanced_accuracy(rng):
    site = np.array(["a"] * 30 + ["b"] * 6)
    predicted = np.where(rng.random(36) < 0.7, site, "a")
    found = bootstrap(predicted == site, [str(i) for i in range(36)], strata=site)
    assert found.value == pytest.approx(balanced_accuracy_score(site, predicted))
    assert found.low <= found.value <= found.high


def test_what_is_not_finite_is_left_out():
    assert bootstrap([1.0, np.nan, 3.0], ["a", "b", "c"])[::3] == (2.0, 2)
    assert np.isnan(bootstrap([np.nan], ["a"]).value)


def test_interval_covers_the_truth_about_95_times_in_100(rng):
    held = 0
    for _ in range(200):
        people = rng.normal(size=25)
        values = np.repeat(people, 4) + rng.normal(0, 0.1, size=100)
        interval = bootstrap(values, np.repeat(np.arange(25).astype(str), 4), draws=400)
        held += interval.low <= 0 <= interval.high
    assert 176 <= held <= 198


def test_paired_difference_sees_what_two_intervals_hide(rng):
    people = rng.normal(0, 5, size=20)
    subjects = [str(i) for i in range(20)]
    a, b = people + 0.5, people + rng.normal(0, 0.2, size=20)
    found = paired_difference(a, b, subjects)
    assert found.low > 0.3
    assert found.p < 0.001
    assert bootstrap(a, subjects).low < bootstrap(b, subjects).high


def test_p_equals_scipys_permutation_test(rng):
    difference = rng.normal(0.4, 1, size=10)
    expected = stats.permutation_test(
        (difference, np.zeros(10)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    found = paired_difference(difference, np.zeros(10), [str(i) for i in range(10)], draws=20_000)
    assert found.p == pytest.approx(expected, abs=0.01)


def test_any_statistic_resamples_people_with_all_their_images(rng):
    values, subjects = rng.normal(size=30), np.repeat(np.arange(10).astype(str), 3)
    found = bootstrap_statistic(lambda rows: float(values[rows].mean()), subjects, draws=2000)
    assert found == pytest.approx(bootstrap(values, subjects), abs=0.05)


@pytest.mark.slow
def test_interval_of_agreement_between_images_covers_0_where_labels_are_dealt_at_random(rng):
    """Copies of an image always agree: with replacement, the interval would lie above chance."""
    held, above = 0, 0
    for seed in range(30):
        sites, clusters = rng.integers(3, size=(2, 24))
        found = bootstrap_statistic(
            lambda rows, a=sites, b=clusters: agreement(a[rows], b[rows]), [*map(str, range(24))], seed, 60
        )
        held += found.low <= 0 <= found.high
        above += (found.low + found.high) / 2 > 0
    assert held >= 26
    assert above <= 24


def test_what_is_below_chance_is_no_better_than_chance(rng):
    subjects, sites = [*map(str, range(20))], ["a", "b"] * 10
    guessed, never, always = np.tile([0.0, 0.0, 1.0, 1.0], 5), np.zeros(20), np.ones(20)
    plain = paired_difference(never, guessed, subjects, strata=sites)
    assert (plain.value, plain.p < 0.01) == (-0.5, True)
    floored = paired_difference(never, guessed, subjects, strata=sites, floor=0.5)
    assert (floored.value, floored.high, floored.p) == (0, 0, 1)
    assert paired_difference(never, always, subjects, strata=sites, floor=0.5)[:3] == (-0.5, -0.5, -0.5)
