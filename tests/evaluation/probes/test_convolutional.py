"""The convolutional probe finds an invisible pattern, and its result is reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.evaluation.probes.site import cnn_site_probe

pytestmark = pytest.mark.slow


def _slices(rng, mark: float, people: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Smooth blobs under noise of level .05; stripes of a site's own direction, as high as ``mark``."""
    code = np.arange(people) % 2
    stripes = np.stack([np.indices((32, 32))[axis] % 2 - 0.5 for axis in (0, 1)])[code]
    places = rng.normal(0, 1, (people, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    noise = rng.normal(0, 0.05, (people, 3, 32, 32))
    return (0.5 + 0.1 * places + noise + mark * stripes[:, None]).astype(np.float16), np.array(["a", "b"])[code]


def test_network_tells_an_invisible_pattern_and_repeats_itself(rng):
    (marked, site), (plain, _) = _slices(rng, 0.05), _slices(rng, 0)
    subject = np.arange(len(site)).astype(str)
    found = cnn_site_probe(marked, site, subject)
    assert found.balanced_accuracy > 0.9
    assert all(training.converged and training.accuracy == 1 and training.loss < 0.02 for training in found.trainings)
    assert np.array_equal(found.predicted, cnn_site_probe(marked, site, subject).predicted)
    assert cnn_site_probe(marked, site, subject, trained_on=plain).balanced_accuracy < 0.8
