"""Probes: right where the site shows, at chance where it does not, and what freezing hides."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from mmh_ray.errors import DataError
from mmh_ray.evaluation.probes import site_probe
from mmh_ray.evaluation.statistics import bootstrap

pytestmark = pytest.mark.fast

PEOPLE = 60
SITE = np.array(["a", "b", "c"])[np.arange(PEOPLE) % 3]
SUBJECT = np.arange(PEOPLE).astype(str)


def _features(rng, shift: float, column: int = 0) -> np.ndarray:
    features = rng.normal(size=(PEOPLE, 5))
    features[:, column] += shift * (np.arange(PEOPLE) % 3)
    return features


def test_a_site_that_shows_is_told_and_one_that_does_not_is_not(rng):
    apart, alike = site_probe(_features(rng, 10), SITE, SUBJECT), site_probe(_features(rng, 0), SITE, SUBJECT)
    assert apart.balanced_accuracy > 0.95
    assert alike.chance == pytest.approx(1 / 3)
    assert alike.balanced_accuracy < apart.chance_high + 0.1
    assert 1 / 3 < alike.chance_high < 0.55


def test_accuracy_is_scikit_learns_and_the_bootstraps(rng):
    found = site_probe(_features(rng, 1), SITE, SUBJECT)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(SITE, found.predicted))
    assert np.array_equal(found.correct, found.predicted == SITE)
    assert bootstrap(found.correct, SUBJECT, strata=SITE).value == pytest.approx(found.balanced_accuracy)


def test_frozen_probe_is_fooled_where_the_retrained_one_is_not(rng):
    """The mark moves from the first feature, which the frozen probe learnt, to the second."""
    raw, moved = _features(rng, 10), _features(rng, 10, column=1)
    assert site_probe(moved, SITE, SUBJECT, trained_on=raw).balanced_accuracy < 0.55
    assert site_probe(moved, SITE, SUBJECT).balanced_accuracy > 0.95
    assert site_probe(raw, SITE, SUBJECT, trained_on=raw).balanced_accuracy > 0.95


def test_a_person_is_never_in_training_and_test(rng):
    """Four scans a person that name the person, at one site each: a leak would be right every time."""
    who = np.repeat(np.arange(20), 4)
    site = np.array(["a", "b"])[who % 2]
    found = site_probe(10 * np.eye(20)[who], site, who.astype(str))
    assert found.balanced_accuracy < 0.75


def test_a_gap_in_the_features_is_filled_and_a_small_site_refused(rng):
    features = _features(rng, 10)
    features[::7, 3] = np.nan
    assert site_probe(features, SITE, SUBJECT).balanced_accuracy > 0.95
    with pytest.raises(DataError, match="lonely: 1"):
        site_probe(features, np.where(np.arange(PEOPLE) == 0, "lonely", SITE), SUBJECT)
    with pytest.raises(DataError, match="two sites"):
        site_probe(features, ["a"] * PEOPLE, SUBJECT)
