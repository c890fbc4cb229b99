"""Measures against libraries, hand-computed values, and the properties they are chosen for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import pearsonr
from skimage.metrics import structural_similarity
from sklearn.isotonic import IsotonicRegression

from mmh_ray.evaluation.metrics.agreement import (
    PSNR_LIMIT,
    TruthError,
    gradient_correlation,
    joint_bins,
    psnr,
    scale_by_percentiles,
    ssim,
    tissue_contrast,
    truth_error,
    w1,
)

pytestmark = pytest.mark.fast

SHAPE = (20, 24, 18)


def _noise(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def _ball() -> np.ndarray:
    grid = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    return np.asarray(np.sqrt((grid**2).sum(axis=0)) < 5.9)  # an SSIM window fits around it


def _error(images: list[np.ndarray], truths: list[np.ndarray], masks: list[np.ndarray]) -> TruthError:
    joints = [joint_bins(image, truth, mask) for image, truth, mask in zip(images, truths, masks, strict=True)]
    return truth_error(joints)


def _anatomy(seed: int = 0) -> np.ndarray:
    """Sharp tissue classes 0.2, 0.5 and 0.9 in smooth random shapes."""
    smooth = gaussian_filter(_noise(seed), 1.5)
    return np.select([smooth < np.quantile(smooth, 0.3), smooth < np.quantile(smooth, 0.6)], [0.2, 0.5], 0.9)


def test_scaling_takes_brain_percentiles_to_0_and_1_whatever_the_gain_and_the_background():
    mask, image = _ball(), _noise(1)
    scaled = scale_by_percentiles(image, mask)
    assert scaled.dtype == np.float32
    assert np.percentile(scaled[mask], [1, 99]) == pytest.approx([0, 1], abs=1e-6)
    other = np.where(mask, 40 * image + 7, 1e4)
    assert scale_by_percentiles(other, mask)[mask] == pytest.approx(scaled[mask], abs=1e-5)


def test_flat_image_scales_to_zero():
    assert not scale_by_percentiles(np.full(SHAPE, 3.0), _ball()).any()


@pytest.mark.parametrize("sizes", [(500, 500), (317, 450), (1, 7), (3, 9)])
def test_w1_is_the_area_between_the_quantile_functions(sizes):
    a = _noise(2, (sizes[0],))
    b = 2 * _noise(3, (sizes[1],)) + 0.5
    # both quantile functions are constant between these probabilities
    edges = np.union1d(np.arange(1, a.size + 1) / a.size, np.arange(1, b.size + 1) / b.size)
    widths = np.diff(edges, prepend=0.0)
    middles = edges - widths / 2
    quantiles_a = np.sort(a)[(middles * a.size).astype(int)]
    quantiles_b = np.sort(b)[(middles * b.size).astype(int)]
    assert w1(a, b) == pytest.approx(np.sum(widths * np.abs(quantiles_a - quantiles_b)), abs=1e-9)


def test_w1_known_values():
    assert w1(np.array([0.0, 1.0]), np.array([0.0])) == 0.5
    values = _noise(4, (100,))
    assert w1(values, values + 0.25) == pytest.approx(0.25)
    assert w1(values, values[::-1]) == 0


def test_psnr_is_that_of_the_mean_square_and_ignores_the_background():
    mask, a = _ball(), _noise(5)
    b = a + 0.1 * _noise(6)
    expected = -10 * np.log10(np.mean((a[mask] - b[mask]) ** 2))
    assert psnr(a, b, mask) == pytest.approx(expected)
    assert psnr(a, np.where(mask, b, 50), mask) == pytest.approx(expected)
    assert psnr(np.zeros(SHAPE), np.full(SHAPE, 0.1), mask) == pytest.approx(20)
    assert psnr(a, a, mask) == PSNR_LIMIT


def test_ssim_equals_skimage_inside_the_mask_and_ignores_the_background():
    mask, a = _ball(), _anatomy()
    b = a + 0.1 * _noise(7)
    _, full = structural_similarity(np.where(mask, a, 0), np.where(mask, b, 0), win_size=7, data_range=1.0, full=True)
    assert ssim(a, b, mask) == pytest.approx(full[mask].mean())
    assert ssim(np.where(mask, a, -3), np.where(mask, b, 9), mask) == pytest.approx(full[mask].mean())
    assert ssim(a, a, mask) == pytest.approx(1)


def test_ssim_of_a_mask_that_touches_the_border_is_defined():
    a = _anatomy()
    assert ssim(a, a + 0.05 * _noise(8), np.ones(SHAPE, bool)) < 1


def test_gradient_correlation_is_pearson_of_gradient_magnitudes():
    a, mask = _anatomy(), np.zeros(SHAPE, bool)
    b = a + 0.2 * _noise(9)
    mask[4:-4, 4:-4, 4:-4] = True
    magnitudes = [np.sqrt(sum(g**2 for g in np.gradient(x)))[5:-5, 5:-5, 5:-5].ravel() for x in (a, b)]
    assert gradient_correlation(a, b, mask) == pytest.approx(pearsonr(*magnitudes)[0])


def test_gradient_correlation_sees_inverted_contrast_as_the_same_edges_and_moved_edges_as_others():
    a, mask = _anatomy(), _ball()
    assert gradient_correlation(5 - 3 * a, a, mask) == pytest.approx(1)
    assert gradient_correlation(np.roll(a, 5, axis=0), a, mask) < 0.3
    assert gradient_correlation(np.zeros(SHAPE), a, mask) == 0


def test_gradient_correlation_does_not_see_the_background():
    a, mask = _anatomy(), _ball()
    b = a + 0.2 * _noise(9)
    assert gradient_correlation(np.where(mask, b, 100), a, mask) == pytest.approx(gradient_correlation(b, a, mask))


def test_tissue_contrast_by_hand():
    image = np.array([1.0, 3.0, 5.0, 7.0, 100.0])
    gm, wm = np.array([0.9, 0.6, 0.1, 0.0, 0.5]), np.array([0.1, 0.4, 0.9, 1.0, 0.5])
    # means 2 and 6; pooled variance (1+1 + 1+1) / (4 - 2) = 2
    assert tissue_contrast(image, gm, wm) == pytest.approx(4 / np.sqrt(2))
    assert tissue_contrast(np.ones(5), gm, wm) == 0
    assert tissue_contrast(image, np.zeros(5), wm) == 0


def test_blur_raises_ssim_between_noisy_copies_and_raises_truth_nrmse():
    truth, mask = _anatomy(), _ball()
    copies = [truth + 0.08 * _noise(seed) for seed in (10, 11)]
    blurred = [gaussian_filter(copy, 1.5) for copy in copies]
    assert ssim(blurred[0], blurred[1], mask) > ssim(copies[0], copies[1], mask) + 0.02
    sharp_error = _error(copies, [truth] * 2, [mask] * 2).cohort
    assert _error(blurred, [truth] * 2, [mask] * 2).cohort > sharp_error + 0.05


def test_truth_nrmse_is_unchanged_by_a_monotone_map_of_the_cohort_but_not_of_one_image():
    truths, masks = [_anatomy(1), _anatomy(2)], [_ball()] * 2
    images = [truth + 0.2 * _noise(seed) for seed, truth in zip((12, 13), truths, strict=True)]
    plain = _error(images, truths, masks)
    curved = _error([np.exp(3 * image) - 40 for image in images], truths, masks)
    assert curved.cohort == pytest.approx(plain.cohort, rel=1e-9)
    assert curved.per_image == pytest.approx(plain.per_image, rel=1e-9)
    falling = _error([-image for image in images], truths, masks)
    assert falling.cohort == pytest.approx(plain.cohort, rel=0.02)
    assert _error([images[0], images[1] + 1], truths, masks).cohort > plain.cohort + 0.2


def test_truth_nrmse_equals_the_voxelwise_definition_up_to_binning():
    truths, masks = [_anatomy(3), _anatomy(4)], [_ball()] * 2
    images = [truth**0.7 + 0.15 * _noise(seed) for seed, truth in zip((14, 15), truths, strict=True)]
    x, t = (np.concatenate([image[mask] for image, mask in zip(part, masks, strict=True)]) for part in (images, truths))
    fitted = IsotonicRegression().fit_transform(x, t)
    expected = np.sqrt(np.mean((fitted - t) ** 2)) / t.std()
    found = _error(images, truths, masks)
    assert found.cohort == pytest.approx(expected, rel=0.02)
    assert np.sqrt(np.mean(found.per_image**2)) == pytest.approx(found.cohort, rel=1e-6)  # masks of one size


def test_truth_nrmse_is_0_for_the_truth_and_about_1_for_noise():
    truth, mask = gaussian_filter(_noise(16), 2), _ball()
    assert _error([7 * truth + 3], [truth], [mask]).cohort < 0.02
    assert _error([_noise(17)], [truth], [mask]).cohort == pytest.approx(1, abs=0.1)
