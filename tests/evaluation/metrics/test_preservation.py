"""Metrics of preservation against hand-computed values, and the order in which they must rank methods."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles, w1
from mmh_ray.evaluation.metrics.preservation import (
    dissimilarity_map,
    distance,
    hallucination,
    idempotence,
    lesion_contrast,
    lesion_preservation,
    mae,
    noise_estimate,
    smoothness_mm,
    structural_dissimilarity,
    tissue_quantiles,
)
from mmh_ray.imaging.intensity import noise_level

pytestmark = pytest.mark.fast

SHAPE = (36, 40, 32)
MASK = np.zeros(SHAPE, bool)
MASK[3:-3, 3:-3, 3:-3] = True


def _anatomy(seed: int = 0, noise: float = 0.03) -> np.ndarray:
    """Tissues .2, .5 and .9 in smooth random shapes, and noise."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=SHAPE), 3)
    classes = np.select([smooth < np.quantile(smooth, 0.3), smooth < np.quantile(smooth, 0.6)], [0.2, 0.5], 0.9)
    return ndimage.gaussian_filter(classes, 0.6) + rng.normal(0, noise, SHAPE)


def _bump() -> np.ndarray:
    grid = np.indices(SHAPE) - np.array([18, 20, 16]).reshape(3, 1, 1, 1)
    return np.asarray(np.exp(-(grid**2).sum(axis=0) / 8))


def test_affine_and_smooth_monotone_changes_invent_nothing():
    source = _anatomy()
    bias = np.exp(0.3 * np.linspace(-1, 1, SHAPE[0]))[:, None, None]
    assert hallucination(3 * source + 7, source, MASK) < 0.01
    assert hallucination(1 - source, source, MASK) < 0.01
    assert hallucination(source * bias, source, MASK) < 0.02
    assert hallucination(np.maximum(source, 0) ** 0.7, source, MASK) < 0.03


def test_white_noise_invents_nothing_and_another_anatomy_everything():
    source = _anatomy()
    noise = np.random.default_rng(5).normal(0, 0.03, SHAPE)
    assert hallucination(source + noise, source, MASK) < 0.03
    assert hallucination(_anatomy(1), source, MASK) > 0.5
    assert hallucination(np.ones(SHAPE), source, MASK) == 0


def test_every_invented_structure_adds_to_the_score():
    source = _anatomy()
    scores = [hallucination(source + height * _bump(), source, MASK) for height in (0, 0.3, 0.6)]
    assert scores[0] < scores[1] < scores[2]
    mixed = [hallucination((1 - share) * source + share * _anatomy(1), source, MASK) for share in (0.1, 0.3, 0.5)]
    assert mixed == sorted(mixed)
    assert mixed[0] > 0.005  # a tenth of another brain: about a hundredth of its variance


def test_dissimilarity_of_a_window_is_half_of_one_less_its_correlation():
    rng = np.random.default_rng(2)
    a = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1)
    b = a + ndimage.gaussian_filter(rng.normal(size=SHAPE), 1)
    window = tuple(slice(i - 2, i + 3) for i in (18, 20, 16))
    correlation = np.corrcoef(a[window].ravel(), b[window].ravel())[0, 1]
    found = dissimilarity_map(a, b, MASK)
    assert found[18, 20, 16] == pytest.approx((1 - correlation) / 2, abs=0.02)
    assert found.dtype == np.float32
    assert not found[~MASK].any()
    assert structural_dissimilarity(a, b, MASK) == pytest.approx(found[MASK].mean())


def test_dissimilarity_is_0_for_the_same_structure_and_near_1_for_its_inverse():
    source = _anatomy()
    assert structural_dissimilarity(5 * source - 2, source, MASK) < 1e-4
    assert structural_dissimilarity(-source, source, MASK) > 0.9
    assert structural_dissimilarity(_anatomy(1), source, MASK) == pytest.approx(0.5, abs=0.1)


def test_distances_by_hand():
    a, b = np.arange(101.0).reshape(101, 1, 1), np.arange(101.0).reshape(101, 1, 1) + 7
    mask = np.ones(a.shape, bool)
    assert mae(a, b, mask) == pytest.approx(7)
    assert distance(a, b, mask) == pytest.approx(0, abs=1e-6)
    assert distance(a, 3 * b, mask) == pytest.approx(0, abs=1e-6)
    assert idempotence(a, b, mask) == pytest.approx(7 / 98)
    assert idempotence(a, a, mask) == 0
    assert np.isnan(idempotence(np.ones_like(a), b, mask))


def test_noise_and_smoothness_follow_what_was_done():
    quiet, noisy = _anatomy(noise=0.02), _anatomy(noise=0.08)
    span = np.ptp(np.percentile(noisy[MASK], [1, 99]))
    assert noise_estimate(noisy, MASK) == pytest.approx(0.08 / span, rel=0.15)
    assert noise_estimate(40 * quiet + 3, MASK) == pytest.approx(noise_estimate(quiet, MASK), rel=1e-3)
    widths = [smoothness_mm(ndimage.gaussian_filter(quiet, s), MASK, (2.0, 2.0, 2.0)) for s in (0, 0.8, 1.6)]
    assert widths == sorted(widths)
    assert smoothness_mm(quiet, MASK, (4.0, 4.0, 4.0)) == pytest.approx(2 * widths[0])


def test_tissue_quantiles_feed_w1():
    labels = np.repeat([0, 1, 3], 500)
    scaled = np.random.default_rng(0).normal(size=1500)
    found, moved = tissue_quantiles(scaled, labels), tissue_quantiles(scaled + 0.25 * (labels == 3), labels)
    assert list(found) == ["CSF", "WM"]
    assert w1(found["CSF"], moved["CSF"]) == 0
    assert w1(found["WM"], moved["WM"]) == pytest.approx(0.25, abs=1e-3)


def test_a_lesion_is_kept_faded_or_erased():
    lesion = _bump() > 0.5
    around = np.random.default_rng(0).normal(1, 0.1, SHAPE)
    assert lesion_contrast(around + lesion, lesion, MASK) == pytest.approx(10, rel=0.15)
    source = around + lesion
    assert lesion_preservation(7 * source + 2, source, lesion, MASK) == pytest.approx(1)
    assert lesion_preservation(around + 0.5 * lesion, source, lesion, MASK) == pytest.approx(0.5, abs=0.05)
    assert lesion_preservation(around, source, lesion, MASK) == pytest.approx(0, abs=0.05)
    assert np.isnan(lesion_contrast(source, lesion & ~lesion, MASK))


def test_hallucination_is_what_least_squares_leaves_window_by_window():
    shape = (10, 11, 9)
    source, output = (ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1) for seed in (0, 1))
    output, mask = output + source, np.ones(shape, bool)
    x, y = scale_by_percentiles(source, mask).astype(float), scale_by_percentiles(output, mask).astype(float)
    slope, residual, own = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for place in np.ndindex(*shape):
        window = tuple(slice(max(0, i - 2), i + 3) for i in place)
        fit = np.polyfit(x[window].ravel(), y[window].ravel(), 1)
        slope[place], own[place] = fit[0], y[window].var()
        residual[place] = (y[window] - np.polyval(fit, x[window])).var()
    noise = noise_level((y - ndimage.uniform_filter(slope, 5) * x).astype(np.float32), mask) ** 2
    expected = np.maximum(residual - noise, 0).sum() / own.sum()
    assert expected > 0.05
    assert hallucination(output, source, mask) == pytest.approx(expected, rel=1e-3)


def test_noise_is_the_median_of_the_finest_haar_details_of_blocks():
    image = np.random.default_rng(4).normal(0, 0.1, SHAPE)
    span, sign = np.ptp(np.percentile(image, [1, 99])), np.array([1, -1]) / np.sqrt(2)
    blocks = image.reshape(SHAPE[0] // 2, 2, SHAPE[1] // 2, 2, SHAPE[2] // 2, 2)
    details = np.einsum("aibjck,i,j,k->abc", blocks, sign, sign, sign)
    expected = np.median(np.abs(details)) / 0.6745 / span
    assert noise_estimate(image, np.ones(SHAPE, bool)) == pytest.approx(expected, rel=0.05)
