"""Baselines are monotone, undo a scanner's gain and curve, and are fitted on the cohort only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.exposure import match_histograms

from mmh_ray.evaluation.baselines.image_baselines import (
    BASELINES,
    LEVELS,
    DenoisedHistogramMatching,
    HistogramMatching,
    Nyul,
    Raw,
    Unfitted,
    WhiteStripe,
    ZScore,
    quantile_function,
)
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render

pytestmark = pytest.mark.fast

SHAPE = (24, 26, 22)
MASK = np.zeros(SHAPE, bool)
MASK[3:-3, 3:-3, 3:-3] = True


def _image(seed: int, smoothness: float = 2) -> np.ndarray:
    """Positive, smooth, three modes."""
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), smoothness)
    ranks = np.argsort(np.argsort(smooth.ravel())).reshape(SHAPE) / smooth.size
    return np.asarray((0.2 + 0.3 * (ranks > 0.3) + 0.3 * (ranks > 0.6) + 0.15 * ranks) * 400)


def _training(gains: tuple[float, ...] = (1, 1.2, 0.7, 1)) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(gain * _image(seed), MASK) for seed, gain in enumerate(gains)]


def _fitted(method, images):
    return method.from_quantiles([quantile_function(image, mask) for image, mask in images])


def _fit(name: str):
    return _fitted(BASELINES[name], _training())


def _span(image: np.ndarray) -> float:
    return float(np.ptp(np.percentile(image[MASK], [1, 99])))


def test_raw_is_the_image():
    image = _image(9)
    assert np.array_equal(Raw().apply(image, MASK), image.astype(np.float32))


def test_n4_alone_is_the_corrected_image_and_learns_nothing():
    image, n4 = _image(9), BASELINES["n4"]
    assert np.array_equal(n4.from_quantiles([]).apply(image, MASK), image.astype(np.float32))
    assert n4.bias_corrected
    assert issubclass(n4, Unfitted)
    assert not BASELINES["raw"].bias_corrected


def test_zscore_has_mean_0_and_sd_1_in_the_mask_whatever_lies_outside():
    output = ZScore().apply(np.where(MASK, _image(9), 1e4), MASK)
    assert output[MASK].mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert output[MASK].std(dtype=np.float64) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["zscore", "whitestripe", "nyul", "n4_histogram_matching"])
def test_the_map_is_monotone(name):
    image = _image(9)
    output = _fit(name).apply(image, MASK)[MASK]
    ordered = output[np.argsort(image[MASK])]
    assert np.diff(ordered).min() >= -1e-4 * np.ptp(ordered)
    assert np.ptp(ordered) > 0


@pytest.mark.parametrize(
    "name", ["zscore", "whitestripe", "nyul", "n4_histogram_matching", "n4_histogram_matching_nlm"]
)
def test_a_scanners_gain_is_undone(name):
    baseline, image = _fit(name), _image(9)
    plain, scaled = baseline.apply(image, MASK), baseline.apply(3.7 * image, MASK)
    assert np.abs(scaled - plain)[MASK].max() < 2e-3 * _span(plain)


@pytest.mark.parametrize(("name", "tolerance"), [("nyul", 0.03), ("n4_histogram_matching", 0.002)])
def test_a_scanners_curve_is_undone_where_zscore_cannot(name, tolerance):
    image = _image(9)
    curved = 400 * (image / 400) ** 2

    def change(baseline) -> float:
        plain = baseline.apply(image, MASK)
        return float(np.abs(baseline.apply(curved, MASK) - plain)[MASK].mean() / _span(plain))

    assert change(_fit(name)) < tolerance < change(ZScore())


def _peaks(*heights: tuple[float, float, int]) -> np.ndarray:
    """Normal peaks (mean, sd, voxels; together the 5,760 of the mask) in random places."""
    rng = np.random.default_rng(0)
    parts = np.concatenate([rng.normal(mean, sd, count) for mean, sd, count in heights])
    image = np.zeros(SHAPE)
    image[MASK] = rng.permutation(parts)
    return image


@pytest.mark.parametrize(
    ("tissues", "white"),
    [
        (((100, 10, 860), (300, 12, 2900), (400, 15, 2000)), 400),  # T1w: the brightest, though grey has more voxels
        (((100, 12, 1700), (170, 12, 3400), (400, 10, 660)), 100),  # T2w: the darkest, though grey has more voxels
    ],
)
def test_whitestripe_puts_white_matter_at_0_and_its_stripe_at_1(tissues, white):
    image = _peaks(*tissues)
    stripe = _fitted(WhiteStripe, [(image, MASK)])
    output = stripe.apply(image, MASK)
    at_0 = image[MASK][np.argmin(np.abs(output[MASK]))]
    assert at_0 == pytest.approx(white, abs=6)
    ranks = np.sort(image[MASK])
    place = np.searchsorted(ranks, at_0) / ranks.size
    inside = (image >= np.quantile(ranks, max(place - 0.05, 0))) & (image <= np.quantile(ranks, place + 0.05)) & MASK
    assert output[inside].mean() == pytest.approx(0, abs=0.15)
    assert output[inside].std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_whitestripe_finds_the_white_matter_of_phantoms(sequence):
    anatomy = simulate_anatomy(Person(40), 4.0)
    white, grey = ((anatomy.fractions[tissue] > 0.9) & anatomy.brain for tissue in (2, 1))
    for scanner in SITES[:2]:
        quiet = replace(scanner, bias=0.0)  # as after N4
        image = render(anatomy, quiet, sequence, np.random.default_rng(0), 4.0)
        output = _fitted(WhiteStripe, [(image, anatomy.brain)]).apply(image, anatomy.brain)
        assert abs(np.median(output[white])) < 0.25 * abs(np.median(output[grey]))


def test_nyul_takes_landmarks_to_the_standard_ones():
    nyul = _fitted(Nyul, _training())
    assert nyul.landmarks[[0, -1]] == pytest.approx([0, 100])
    output = nyul.apply(_image(9), MASK)
    assert np.percentile(output[MASK], [1, 10, 50, 90, 99]) == pytest.approx(nyul.landmarks[[0, 1, 5, 9, 10]], abs=0.5)


def test_nyul_continues_beyond_the_outer_landmarks():
    image = _image(9)
    image[0, 0, 0] = 10 * image.max()
    output = _fitted(Nyul, _training()).apply(image, MASK)
    assert output[0, 0, 0] > 2 * output[MASK].max()


def test_histogram_matching_gives_the_cohorts_quantiles_and_clears_the_background():
    matching = _fitted(HistogramMatching, _training())
    assert matching.quantiles.shape == (LEVELS,)
    output = matching.apply(_image(9), MASK)
    assert np.abs(quantile_function(output, MASK) - matching.quantiles).mean() < 1e-3
    assert not output[~MASK].any()


def test_fit_weighs_images_by_shape_of_histogram_not_by_gain():
    even = _fitted(HistogramMatching, _training((1, 1, 1, 1)))
    assert _fitted(HistogramMatching, _training((1, 900, 1, 1))).quantiles == pytest.approx(even.quantiles)
    assert _fitted(Nyul, _training((1, 900, 1, 1))).landmarks == pytest.approx(
        _fitted(Nyul, _training((1, 1, 1, 1))).landmarks
    )


@pytest.mark.parametrize("name", list(BASELINES))
def test_quantised_and_flat_scans_stay_finite(name):
    baseline = _fit(name)
    assert np.isfinite(baseline.apply(np.round(_image(9) / 60) * 60, MASK)).all()
    assert np.isfinite(baseline.apply(np.full(SHAPE, 5.0), MASK)).all()


def test_denoising_removes_noise_and_keeps_the_background_clear():
    clean, matching = _image(9, smoothness=5), _fitted(HistogramMatching, _training())
    noisy = clean + np.random.default_rng(0).normal(0, 25, SHAPE)
    smooth = DenoisedHistogramMatching(matching.quantiles)

    def disagreement(output: np.ndarray) -> float:
        return float(1 - np.corrcoef(output[MASK], clean[MASK])[0, 1])

    assert disagreement(smooth.apply(noisy, MASK)) < 0.6 * disagreement(matching.apply(noisy, MASK))
    assert not smooth.apply(noisy, MASK)[~MASK].any()


def test_histogram_matching_is_scikit_images():
    image, matching = _image(9), _fitted(HistogramMatching, _training())
    reference = np.interp(np.linspace(0, 1, 20_001), np.linspace(0, 1, LEVELS), matching.quantiles)
    expected = match_histograms(image[MASK], reference)
    assert np.abs(matching.apply(image, MASK)[MASK] - expected).mean() < 2e-3 * np.ptp(expected)
