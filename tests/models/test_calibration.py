"""The last curve: what a network pales on average comes back, for everybody alike, and nobody's own histogram is matched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from mmh_ray.config import HarmonizeConfig
from mmh_ray.models import calibration
from mmh_ray.models.calibration import fit_calibration, harmonize_volume
from mmh_ray.models.global_harmonizer import GlobalHarmonizer

pytestmark = pytest.mark.fast

PALE = 0.6
"""How much of a contrast the network of these tests keeps."""


@pytest.fixture
def pale(model: GlobalHarmonizer, monkeypatch: pytest.MonkeyPatch) -> GlobalHarmonizer:
    """A model whose three planes show the scan drawn towards the middle."""

    def estimate(_model: GlobalHarmonizer, scan: np.ndarray, mask: np.ndarray, *_: object) -> np.ndarray:
        return np.stack([(0.5 + PALE * (scan - 0.5)) * mask] * 3).astype(np.float32)

    monkeypatch.setattr(calibration, "estimate_planes", estimate)
    return model


def person(seed: int, mask: np.ndarray) -> np.ndarray:
    """A smooth brain of its own, unit intensity."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(mask.shape), 2)
    ranks = np.argsort(np.argsort(noise[mask])) / mask.sum()
    brain = np.zeros(mask.shape, np.float32)
    brain[mask] = 0.1 + 0.8 * ranks ** np.random.default_rng(seed).uniform(0.8, 1.25)
    return brain


@pytest.fixture
def calibrated(pale: GlobalHarmonizer, mask: np.ndarray) -> GlobalHarmonizer:
    """Its curve, fitted on eight people."""
    people = [person(seed, mask) for seed in range(8)]
    curve = fit_calibration(pale, 0, [(brain, brain, mask) for brain in people], HarmonizeConfig())
    pale.calibration[0] = torch.from_numpy(curve)
    return pale


def test_a_new_model_changes_nothing(pale: GlobalHarmonizer, mask: np.ndarray) -> None:
    brain = person(0, mask)
    found = harmonize_volume(pale, brain, mask, 0, HarmonizeConfig())
    np.testing.assert_allclose(found[mask], (0.5 + PALE * (brain - 0.5))[mask], atol=1e-5)


def test_contrast_that_the_network_loses_comes_back(calibrated: GlobalHarmonizer, mask: np.ndarray) -> None:
    brain = person(99, mask)
    found = harmonize_volume(calibrated, brain, mask, 0, HarmonizeConfig())
    inner = mask & (brain > 0.15) & (brain < 0.85)
    np.testing.assert_allclose(found[inner], brain[inner], atol=0.02)


def test_the_curve_is_the_same_for_everyone(calibrated: GlobalHarmonizer, mask: np.ndarray) -> None:
    """A person with twice the dark tissue keeps it: no histogram is matched."""
    brain = person(99, mask)
    atrophied = np.where(brain < 0.55, brain / 2, brain).astype(np.float32)
    plain, found = (harmonize_volume(calibrated, one, mask, 0, HarmonizeConfig()) for one in (brain, atrophied))
    same = mask & (atrophied == brain)
    np.testing.assert_array_equal(found[same], plain[same])


def test_the_other_sequence_keeps_its_curve(calibrated: GlobalHarmonizer, mask: np.ndarray) -> None:
    assert torch.equal(calibrated.calibration[1, 0], calibrated.calibration[1, 1])
    brain = person(1, mask)
    found = harmonize_volume(calibrated, brain, mask, 1, HarmonizeConfig())
    np.testing.assert_allclose(found[mask], (0.5 + PALE * (brain - 0.5))[mask], atol=1e-5)
