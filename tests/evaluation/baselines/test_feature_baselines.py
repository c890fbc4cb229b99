"""ComBat and CovBat remove site effects, and learn from training images only."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.errors import DataError
from mmh_ray.evaluation.baselines.feature_baselines import FEATURE_METHODS, harmonize_features
from mmh_ray.evaluation.probes.site import site_probe

pytestmark = pytest.mark.fast

IMAGES = 360
SITE = np.array(["a", "b", "c"])[np.arange(IMAGES) % 3]
TRAIN = np.arange(IMAGES) < 240


def _features(rng) -> tuple[np.ndarray, np.ndarray]:
    """Six features of common spread, shifted and scaled by site, the first following age."""
    age = rng.uniform(20, 80, IMAGES)
    person = rng.normal(size=(IMAGES, 6))
    person[:, 0] += age / 10
    code = np.arange(IMAGES) % 3
    return person * (1 + 0.5 * code[:, None]) + 4 * code[:, None], age


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_held_out_images_of_all_sites_come_together(method, rng):
    features, _ = _features(rng)
    found = harmonize_features(method, features, SITE, TRAIN)[~TRAIN]

    def spans(values: np.ndarray) -> tuple[float, float]:
        """Largest difference of the sites' means, and mean ratio of their largest to their smallest spread."""
        sites = [values[SITE[~TRAIN] == name] for name in "abc"]
        means, spreads = (np.array([stat(own, axis=0) for own in sites]) for stat in (np.mean, np.std))
        return np.ptp(means[:, 1:], axis=0).max(), (spreads.max(axis=0) / spreads.min(axis=0)).mean()

    before, after = spans(features[~TRAIN]), spans(found)
    assert after[0] < before[0] / 6
    assert after[1] - 1 < (before[1] - 1) / 2
    subject = np.arange((~TRAIN).sum()).astype(str)
    assert site_probe(features[~TRAIN], SITE[~TRAIN], subject).balanced_accuracy > 0.9
    assert site_probe(found, SITE[~TRAIN], subject).balanced_accuracy < 0.6


def test_a_shift_alone_is_taken_away_whole(rng):
    plain = rng.normal(size=(IMAGES, 4))
    shifted = plain + 100 * (np.arange(IMAGES) % 3)[:, None]
    found = harmonize_features("combat", shifted, SITE, np.ones(IMAGES, bool))
    means = np.array([found[name == SITE].mean(axis=0) for name in "abc"])
    assert np.ptp(means, axis=0) == pytest.approx(0, abs=0.5)


def test_age_stays_when_it_is_named(rng):
    features, age = _features(rng)
    found = harmonize_features("combat", features, SITE, TRAIN, covariates=age[:, None])
    assert np.corrcoef(found[:, 0], age)[0, 1] > np.corrcoef(features[:, 0], age)[0, 1]


def test_test_images_teach_nothing(rng):
    features, _ = _features(rng)
    other = np.where(TRAIN[:, None], features, features + 50)
    trained = [harmonize_features("combat", x, SITE, TRAIN)[TRAIN] for x in (features, other)]
    assert np.array_equal(*trained)


def test_flat_column_stays_and_unknown_site_is_refused(rng):
    features, _ = _features(rng)
    features[:, 3] = 0.1
    assert (harmonize_features("combat", features, SITE, TRAIN)[:, 3] == 0.1).all()
    with pytest.raises(DataError, match="0 training images of site c"):
        harmonize_features("combat", features, SITE, TRAIN & (SITE != "c"))
