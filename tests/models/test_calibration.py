"""The last curve: what a network pales comes back, by as much as each image shows, and nobody's own histogram is matched."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.config import HarmonizeConfig
from mmh_ray.models import sampling
from mmh_ray.models.calibration import KNOTS, Calibration, observed
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.sampling import harmonize_volume

pytestmark = pytest.mark.fast

UNIFORM = np.linspace(0, 1, 257)
FLUID = 1.0
"""Brighter than anything in these brains."""


def paled(brain: np.ndarray, mask: np.ndarray, kept: float) -> np.ndarray:
    """What a network makes of a brain of which it keeps a share of the contrast."""
    return ((0.5 + kept * (brain - 0.5)) * mask).astype(np.float32)


def person(seed: int, mask: np.ndarray, dark: float = 0.3) -> np.ndarray:
    """A brain of its own, unit intensity: a share of dark tissue of .2, the rest of .5 and .8, smooth between them."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(mask.shape), 2)
    ranks = np.argsort(np.argsort(noise[mask])) / mask.sum()
    brain = np.zeros(mask.shape, np.float32)
    brain[mask] = np.interp(ranks, [0, dark - 0.1, dark, 0.6, 0.7, 1], [0.15, 0.25, 0.45, 0.55, 0.75, 0.85])
    return brain


@pytest.fixture(scope="module")
def calibration(mask: np.ndarray) -> Calibration:
    """Of the second of two sequences, fitted on 40 people with .2 to .5 dark tissue, whose contrast a network keeps by .5 to .8."""
    found, rng = [], np.random.default_rng(0)
    for seed in range(40):
        brain = person(seed, mask, rng.uniform(0.2, 0.5))
        found.append(observed(paled(brain, mask, rng.uniform(0.5, 0.8)), brain, mask, UNIFORM))
    made = Calibration(2)
    made.fit(1, np.stack(found), middle=0.5, fluid=FLUID)
    return made


def test_a_new_model_and_another_sequence_change_nothing(
    model: GlobalHarmonizer, calibration: Calibration, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    brain = person(0, mask)
    monkeypatch.setattr(sampling, "estimate_planes", lambda _model, scan, *_: np.stack([scan] * 3))
    for curves in (model.calibration, calibration):
        model.calibration = curves
        np.testing.assert_allclose(harmonize_volume(model, brain, mask, 0, HarmonizeConfig()), brain, atol=1e-6)
    assert not np.allclose(harmonize_volume(model, brain, mask, 1, HarmonizeConfig()), brain, atol=0.05)


@pytest.mark.parametrize("kept", [0.55, 0.65, 0.75])
@pytest.mark.parametrize("dark", [0.25, 0.45])
def test_contrast_comes_back_by_as_much_as_was_lost(
    calibration: Calibration, mask: np.ndarray, kept: float, dark: float
) -> None:
    """Whoever has twice the dark tissue keeps it, and is not taken for paler than others."""
    brain = person(99, mask, dark)
    image = paled(brain, mask, kept)
    found = calibration.curve(1, image, mask).apply_inside(image, mask)
    assert np.abs(image - brain)[mask].mean() > 0.04
    assert np.abs(found - brain)[mask].mean() < 0.015
    assert np.mean(found[mask] < 0.35) == pytest.approx(np.mean(brain[mask] < 0.35), abs=0.02)


def test_curves_differ_in_tissue_and_come_together_at_fluid(calibration: Calibration, mask: np.ndarray) -> None:
    brain = person(99, mask)
    one, other = (calibration.curve(1, paled(brain, mask, kept), mask) for kept in (0.55, 0.75))
    assert one.apply(np.array(0.6)) > other.apply(np.array(0.6)) + 0.03
    for ends in ((one.source, other.source), (one.target, other.target)):
        assert ends[0][-1] == pytest.approx(ends[1][-1], abs=0.005)


def test_beyond_what_was_seen_the_curve_stays_that_of_the_end(calibration: Calibration, mask: np.ndarray) -> None:
    strange = [factor * person(0, mask) for factor in (3, 30)]
    curves = [calibration.curve(1, image, mask) for image in strange]
    np.testing.assert_array_equal(curves[0].source, curves[1].source)
    np.testing.assert_array_equal(curves[0].target, curves[1].target)
    assert (np.diff(curves[0].target) >= 0).all()


def test_noise_of_either_side_does_not_flatten_the_curve(mask: np.ndarray) -> None:
    brain, rng = person(3, mask), np.random.default_rng(0)
    one, other = (brain + rng.normal(0, 0.06, mask.shape) * mask for _ in range(2))
    knots = observed(one, other, mask, UNIFORM)[-2 * KNOTS :].reshape(2, -1)
    inner = (knots[0] > 0.15) & (knots[0] < 0.85)
    np.testing.assert_allclose(knots[1][inner], knots[0][inner], atol=0.02)
    flat = [other[mask & (np.abs(one - place) < 0.03)].mean() for place in (0.02, 0.98)]  # a regression is flat
    assert flat[0] > 0.06
    assert flat[1] < 0.94
