"""Probes are right where there is a site effect and at chance where there is none; frozen probes miss new effects."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from mmh_ray.errors import DataError
from mmh_ray.evaluation.metrics.features import fine_detail
from mmh_ray.evaluation.probes.site import pattern_site_probe, site_probe
from mmh_ray.evaluation.statistics.bootstrap import bootstrap

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
    assert len(apart.trainings) == 5
    assert all(training.converged and training.accuracy > 0.95 for training in apart.trainings)


def test_accuracy_is_scikit_learns_and_the_bootstraps(rng):
    found = site_probe(_features(rng, 1), SITE, SUBJECT)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(SITE, found.predicted))
    assert np.array_equal(found.correct, found.predicted == SITE)
    assert bootstrap(found.correct, SUBJECT, strata=SITE).value == pytest.approx(found.balanced_accuracy)


def test_frozen_probe_is_fooled_where_the_retrained_one_is_not(rng):
    """The site effect moves from the first feature, which the frozen probe learned, to the second."""
    raw, moved = _features(rng, 10), _features(rng, 10, column=1)
    assert site_probe(moved, SITE, SUBJECT, trained_on=raw).balanced_accuracy < 0.55
    assert site_probe(moved, SITE, SUBJECT).balanced_accuracy > 0.95
    assert site_probe(raw, SITE, SUBJECT, trained_on=raw).balanced_accuracy > 0.95


def test_a_person_is_never_in_training_and_test(rng):
    """Four scans per person, all at one site, with features that identify the person: a leak would always be right."""
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
    with pytest.raises(DataError, match="two or more sites"):
        site_probe(features, ["a"] * PEOPLE, SUBJECT)


def test_white_noise_printed_on_a_sites_images_is_found_and_its_absence_is_not():
    """The printed noise is a fifth of the images' own, with the same level and spectrum at every site."""
    shape, mask = (24, 24, 24), np.pad(np.ones((20, 20, 20), bool), 2)
    rng, site = np.random.default_rng(3), SITE[:24]
    prints = {name: rng.normal(0, 0.02, shape) for name in "abc"}
    plain = rng.normal(1, 0.1, (24, *shape)) + np.linspace(0, 3, 24)[:, None]
    marked = np.array([image + prints[name] for image, name in zip(plain, site, strict=True)])
    found, none = (
        pattern_site_probe(np.stack([fine_detail(image, mask) for image in images]), site, SUBJECT[:24])
        for images in (marked, plain)
    )
    assert found.balanced_accuracy > 0.9
    assert none.balanced_accuracy <= none.chance_high
    assert fine_detail(plain[0], mask).dtype == np.float16
    assert not fine_detail(plain[0], mask)[~mask].any()


def test_detail_is_that_of_the_grids_middle_and_free_of_what_is_smooth():
    image, mask = np.indices((40, 44, 36)).sum(axis=0) / 100, np.zeros((40, 44, 36), bool)
    mask[2:-2, 2:-2, 2:-2] = True
    assert fine_detail(image, mask).shape == (32, 32, 32)
    assert fine_detail(image, mask) == pytest.approx(0, abs=1e-3)
    image[20, 22, 18] += 1  # the voxel is its neighbourhood's 27th part
    span = np.ptp(np.percentile(image[mask], [1, 99]))
    assert fine_detail(image, mask)[16, 16, 16] == pytest.approx(26 / 27 / span, rel=1e-2)
