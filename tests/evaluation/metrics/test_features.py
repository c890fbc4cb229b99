"""Features against known values: what changes them and what must not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.evaluation.metrics.features import image_features, probe_slices

pytestmark = pytest.mark.fast

SHAPE = (40, 44, 36)
MM = (2.0, 2.0, 2.0)
MASK = np.zeros(SHAPE, bool)
MASK[4:-4, 4:-4, 4:-4] = True


def _image(seed: int = 0, noise: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=SHAPE), 3)
    return 1 + smooth / smooth.std() * 0.2 + rng.normal(0, noise, SHAPE)


def test_gain_offset_and_background_change_nothing():
    plain = image_features(_image(), MASK, MM)
    other = image_features(np.where(MASK, 300 * _image() + 40, 1e5), MASK, MM)
    assert np.isfinite(list(plain.values())).all()
    assert list(plain) == list(other)
    changed = {name for name in plain if abs(plain[name] - other[name]) > 0.01 * max(1, abs(plain[name]))}
    assert changed <= {"distinct"}  # rounding of float32


def test_noise_is_the_log_of_its_level_in_units_of_the_images_range():
    image = _image(noise=0.05)
    span = np.ptp(np.percentile(image[MASK], [1, 99]))
    assert np.exp(image_features(image, MASK, MM)["noise"]) == pytest.approx(0.05 / span, rel=0.1)


def test_blur_lowers_what_is_fine_and_widens():
    before, after = (image_features(x, MASK, MM) for x in (_image(), ndimage.gaussian_filter(_image(), 1)))
    for name in ("noise", "gradient_95", "band_0.5", "spectrum_i7", "glcm_contrast"):
        assert after[name] < before[name]
    assert after["fwhm_i"] > before["fwhm_i"]


def test_a_pattern_too_faint_to_see_stands_out_in_the_spectrum():
    image = _image()
    pattern = 0.01 * np.cos(np.pi * np.arange(SHAPE[0]))[:, None, None]  # at Nyquist, half the noise
    before, after = (image_features(x, MASK, MM) for x in (image, image + pattern))
    spread = np.std([image_features(_image(seed), MASK, MM)["spectrum_i7"] for seed in range(1, 5)])
    assert after["spectrum_i7"] - before["spectrum_i7"] > 3 * spread


def test_flat_and_tiny_brains_give_finite_features():
    assert np.isfinite(list(image_features(np.ones(SHAPE), MASK, MM).values())).all()
    small = np.zeros(SHAPE, bool)
    small[10:13, 10:13, 10:13] = True
    assert np.isfinite(list(image_features(_image(), small, MM).values())).all()


def test_slices_are_axial_upright_centred_and_scaled():
    image = np.zeros(SHAPE)
    image[MASK] = np.random.default_rng(0).uniform(100, 200, MASK.sum())
    image[4:-4, 22:-4, 4:-4] += 1000  # the front is bright
    found = probe_slices(image, MASK, np.diag([2.0, 2, 2, 1]), size=64, count=6)
    assert found.shape == (6, 64, 64)
    assert found.dtype == np.float16
    assert found[:, 32, 40].mean() > 0.8 > 0.3 > found[:, 32, 20].mean()
    assert not found[:, :10].any()
    turned = np.moveaxis(image, (0, 1, 2), (2, 0, 1))[:, ::-1]  # stored as anterior, inferior, right
    affine = np.array([[0, 0, 2.0, 0], [2, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]])
    mask = np.moveaxis(MASK, (0, 1, 2), (2, 0, 1))[:, ::-1]
    assert np.array_equal(probe_slices(turned, mask, affine), found)
    assert probe_slices(image, MASK, np.eye(4), size=16).shape == (6, 16, 16)
