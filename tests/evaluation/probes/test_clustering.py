"""Clustering metrics against scikit-learn, hand-computed values, and cohorts with known results."""

from __future__ import annotations

from collections import Counter
from math import comb

import numpy as np
import pytest
from scipy.stats import chisquare
from sklearn.metrics import adjusted_rand_score, silhouette_score

from mmh_ray.evaluation.probes.clustering import (
    agreement,
    clusters_of,
    kbet,
    lisi,
    same_subject_nearest,
    silhouettes,
    standardise,
    tsne,
)

pytestmark = pytest.mark.fast

SITE = np.repeat(["a", "b", "c"], 40)


def _cohort(apart: float, seed: int = 0) -> np.ndarray:
    """Three sites ``apart`` from each other, 120 images, 4 features."""
    places = apart * np.eye(4)[:3]
    return np.random.default_rng(seed).normal(size=(120, 4)) + np.repeat(places, 40, axis=0)


def test_standardised_columns_and_one_that_does_not_vary():
    found = standardise(np.column_stack([np.arange(5.0), np.full(5, 0.1)]))
    assert found[:, 0].std() == pytest.approx(1)
    assert not found[:, 1].any()


def test_silhouettes_are_scikit_learns_and_undefined_for_one_label():
    x = _cohort(2)
    assert silhouettes(x, SITE).mean() == pytest.approx(silhouette_score(x, SITE))
    assert np.isnan(silhouettes(x, ["a"] * 120)).all()


def test_agreement_is_1_for_sites_far_apart_and_0_for_labels_dealt_at_random(rng):
    clusters = clusters_of(_cohort(20), len(set(SITE)), seed=0)
    assert agreement(clusters, SITE) == 1
    assert abs(agreement(clusters, rng.permutation(SITE))) < 0.05


def _pairs(codes) -> int:
    """Pairs of images of one code."""
    return sum(comb(count, 2) for count in Counter(codes).values())


def test_agreement_is_that_of_pairs_beyond_chance(rng):
    for groups in (2, 3, 20):
        clusters = rng.integers(groups, size=20)
        labels = rng.choice(["a", "b", "c"], size=20)
        together = _pairs(zip(clusters.tolist(), labels.tolist(), strict=True))
        in_clusters = _pairs(clusters.tolist())
        in_labels = _pairs(labels.tolist())
        chance = in_clusters * in_labels / comb(20, 2)
        most = (in_clusters + in_labels) / 2
        assert agreement(clusters, labels) == pytest.approx((together - chance) / (most - chance), abs=1e-9)
    assert agreement(np.arange(5), np.arange(5)) == 1
    assert agreement(np.zeros(5), np.array(["a"] * 5)) == 1


@pytest.mark.parametrize("images", [1, 2, 3, 10, 200])
def test_agreement_is_scikit_learns(rng, images):
    for _ in range(50):
        clusters = rng.integers(rng.integers(1, 6), size=images)
        labels = rng.integers(rng.integers(1, 6), size=images).astype(str)
        assert agreement(clusters, labels) == adjusted_rand_score(labels, clusters)


def test_lisi_is_0_apart_and_that_of_labels_dealt_at_random_mixed(rng):
    assert lisi(_cohort(50), SITE).max() < 1e-6
    dealt = np.mean([lisi(_cohort(50), rng.permutation(SITE)).mean() for _ in range(10)])
    assert dealt > 0.85
    assert lisi(_cohort(0), SITE).mean() == pytest.approx(dealt, abs=0.03)
    assert 0.1 < lisi(_cohort(2), SITE).mean() < 0.9
    assert np.isnan(lisi(_cohort(0), ["a"] * 120)).all()


def test_lisi_by_hand_where_all_neighbours_are_equally_far():
    corners = 5 * np.eye(7)  # every image 5 √2 from every other: weights are equal
    found = lisi(corners, ["a", "a", "a", "a", "b", "b", "b"])
    effective = 1 / ((4 / 7) ** 2 + (3 / 7) ** 2) - 1
    assert found[0] == pytest.approx((1 / (0.5**2 + 0.5**2) - 1) / effective)  # 3 a and 3 b around
    assert found[-1] == pytest.approx((1 / ((4 / 6) ** 2 + (2 / 6) ** 2) - 1) / effective)


def test_kbet_rejects_all_apart_and_about_5_percent_mixed():
    assert kbet(_cohort(50), SITE).mean() == 1
    assert np.mean([kbet(_cohort(0, seed), SITE).mean() for seed in range(10)]) == pytest.approx(0.05, abs=0.04)


def test_traveling_subjects_are_found_again_until_everybody_looks_alike(rng):
    subject, site = np.tile(np.arange(30).astype(str), 2), np.repeat(["a", "b"], 30)
    people = rng.normal(size=(30, 6))
    scans = np.concatenate([people, people + 0.1 * rng.normal(size=(30, 6))])
    assert same_subject_nearest(scans, subject, site).mean() == 1
    assert same_subject_nearest(np.ones((60, 6)), subject, site).mean() == 0
    assert np.isnan(same_subject_nearest(scans, [str(i) for i in range(60)], site)).all()


def test_tsne_keeps_far_sites_apart_and_repeats_itself():
    x = _cohort(50)[::4]
    found = tsne(x)
    assert found.shape == (30, 2)
    assert silhouette_score(found, SITE[::4]) > 0.5
    assert np.array_equal(found, tsne(x))


def test_kbet_is_scipys_chi_square_of_each_images_nearest(rng):
    features, labels = rng.normal(size=(40, 3)), np.repeat(list("abcd"), 10)
    features[:15] += 1.5
    expected = []
    for row in features:
        nearest = np.argsort(((features - row) ** 2).sum(axis=1))[1:6]  # the first is the image itself
        counts = [(labels[nearest] == name).sum() for name in "abcd"]
        expected.append(chisquare(counts, [1.25] * 4).pvalue < 0.05)
    assert 0 < np.mean(expected) < 1
    assert np.array_equal(kbet(features, labels), np.array(expected, float))
