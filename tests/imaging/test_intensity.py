"""Intensities: scaling is invertible, maps are monotone, barycentres are right, a known bias field is removed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import gamma, norm

from mmh_ray.errors import DataError
from mmh_ray.imaging.intensity import (
    QUANTILES,
    MonotoneMap,
    Scaling,
    correct_bias,
    match_histogram,
    match_tissues,
    mean_quantile_function,
    noise_level,
    quantile_function,
    robust_scaling,
    tissue_quantiles,
)
from mmh_ray.simulation.anatomy import Anatomy

pytestmark = pytest.mark.fast


def variation(values: np.ndarray) -> float:
    """Coefficient of variation."""
    return float(values.std() / values.mean())


@pytest.fixture(scope="module")
def shaded(anatomy: Anatomy, clean: np.ndarray) -> np.ndarray:
    """The clean image under a smooth receive field of a factor of two from side to side."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in clean.shape], indexing="ij")
    return clean * np.exp(0.6 * axes[0] + 0.4 * axes[1] ** 2).astype(np.float32)


def test_scaling_has_known_values() -> None:
    np.testing.assert_allclose(Scaling(-10, 30).apply(np.array([-10.0, 10, 30, 70])), [0, 0.5, 1, 2])


def test_scaling_can_be_undone(rng: np.random.Generator) -> None:
    data, scaling = rng.normal(100, 50, (4, 5, 6)).astype(np.float32), Scaling(-20, 480)
    unit = scaling.apply(data)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(scaling.undo(unit), data, atol=1e-3)


def test_robust_scaling_keeps_zero_and_maps_the_percentile_to_one() -> None:
    data = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    scaling = robust_scaling(data, np.ones(data.shape, bool), 90)
    assert (scaling.low, scaling.high) == (0, pytest.approx(900))


def test_robust_scaling_starts_below_zero_where_the_scan_does() -> None:
    data = np.linspace(-100, 300, 4001)
    scaling = robust_scaling(data, np.ones(data.shape, bool))
    assert scaling.low == pytest.approx(-98)
    assert scaling.high == pytest.approx(298)


def test_robust_scaling_looks_only_inside_the_mask() -> None:
    data = np.array([1.0, 2, 3, 1e6])
    assert robust_scaling(data, data < 10, 100).high == pytest.approx(3)


@pytest.mark.parametrize("data", [np.zeros(8), np.full(8, -5.0)])
def test_no_contrast_is_refused(data: np.ndarray) -> None:
    with pytest.raises(DataError, match="8 masked voxels"):
        robust_scaling(data, np.ones(8, bool))


def test_empty_mask_is_refused() -> None:
    with pytest.raises(DataError, match="0 masked voxels"):
        robust_scaling(np.arange(8.0), np.zeros(8, bool))


def test_monotone_map_has_known_values_and_slope_one_beyond_its_knots() -> None:
    mapping = MonotoneMap(np.array([0.0, 1, 2]), np.array([10.0, 20, 20]))
    mapped = mapping.apply(np.array([[-3.0, 0, 0.25], [1, 1.5, 7]]))
    np.testing.assert_allclose(mapped, [[7, 10, 12.5], [20, 20, 25]])
    assert mapped.dtype == np.float32


def test_a_large_volume_is_mapped_as_each_of_its_planes(rng: np.random.Generator) -> None:
    volume = rng.normal(1, 1, (3, 200, 300)).astype(np.float32)
    mapping = MonotoneMap(np.array([0.0, 1, 2]), np.array([0.0, 0.3, 1]))
    planes = [mapping.apply(plane) for plane in volume]
    np.testing.assert_array_equal(mapping.apply(volume), planes)
    first_axis_contiguous = np.asfortranarray(volume)
    np.testing.assert_array_equal(mapping.apply(first_axis_contiguous), planes)


def test_map_between_quantile_functions_is_monotone_and_matches_the_histogram(rng: np.random.Generator) -> None:
    source, target = rng.gamma(2, 1, 5000), rng.normal(10, 2, 5000)
    mapping = MonotoneMap.between(quantile_function(source), quantile_function(target))
    assert (np.diff(mapping.apply(np.linspace(-5, 25, 500))) >= 0).all()
    matched, inner = (
        quantile_function(mapping.apply(source)),
        slice(4, -4),
    )  # single voxels make the outermost quantiles
    np.testing.assert_allclose(matched[inner], quantile_function(target)[inner], atol=0.01)


def test_ties_in_the_source_take_the_mean_target() -> None:
    mapping = MonotoneMap.between(np.array([0.0, 0, 1]), np.array([1.0, 3, 5]))
    np.testing.assert_allclose(mapping.source, [0, 1])
    np.testing.assert_allclose(mapping.target, [2, 5])


def test_map_of_a_distribution_onto_itself_is_the_identity(rng: np.random.Generator) -> None:
    values = rng.random(1000)
    function = quantile_function(values)
    np.testing.assert_allclose(MonotoneMap.between(function, function).apply(values), values, atol=1e-6)


def test_quantile_function_of_a_ramp_is_the_ramp() -> None:
    np.testing.assert_allclose(quantile_function(np.linspace(3, 7, 1025)), 3 + 4 * QUANTILES)


def test_barycentre_of_two_normals_is_the_normal_of_mean_mean_and_mean_deviation() -> None:
    inner = slice(1, -1)  # the outermost quantiles of a normal are infinite
    first, second = (norm(mean, sd).ppf(QUANTILES[inner]) for mean, sd in ((0, 1), (10, 3)))
    np.testing.assert_allclose(
        mean_quantile_function(iter([first, second])), norm(5, 2).ppf(QUANTILES[inner]), atol=1e-9
    )


@pytest.mark.slow
def test_bias_correction_brings_the_image_nearer_to_the_truth(
    anatomy: Anatomy, clean: np.ndarray, shaded: np.ndarray, spacing: float
) -> None:
    brain = anatomy.brain
    corrected = correct_bias(shaded, brain, (spacing,) * 3)
    before, after = (np.corrcoef(image[brain], clean[brain])[0, 1] for image in (shaded, corrected))
    assert 1 - after < 0.5 * (1 - before)
    white = anatomy.fractions[2] > 0.95
    assert variation(corrected[white]) < 0.5 * variation(shaded[white])


def test_bias_correction_keeps_mean_shape_and_finiteness(anatomy: Anatomy, shaded: np.ndarray, spacing: float) -> None:
    corrected = correct_bias(shaded, anatomy.brain, (spacing,) * 3, (5,))
    assert corrected.shape == shaded.shape
    assert corrected.dtype == np.float32
    assert np.isfinite(corrected).all()
    assert corrected[anatomy.brain].mean() == pytest.approx(shaded[anatomy.brain].mean(), rel=1e-4)


WANTED = {
    "uniform": QUANTILES,
    "normal": norm(0.5, 0.15).ppf(np.clip(QUANTILES, 1e-3, 1 - 1e-3)),
    "skewed": gamma(2, scale=0.2).ppf(np.clip(QUANTILES, 0, 1 - 1e-3)),
    "two tissues": np.where(QUANTILES < 0.4, 0.3, 0.8) + 0.01 * QUANTILES,
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED.keys())
def test_matching_gives_the_brain_the_wanted_quantiles(rng: np.random.Generator, wanted: np.ndarray) -> None:
    data = rng.gamma(2, 300, (20, 24, 18)).astype(np.float32)
    mask = np.zeros(data.shape, bool)
    mask[2:18, 3:20, 2:15] = True
    matched = match_histogram(data, mask, wanted)
    assert (matched.shape, matched.dtype) == (data.shape, np.float32)
    assert not matched[~mask].any()
    assert np.abs(quantile_function(matched[mask]) - wanted).mean() < 0.003
    order = np.argsort(data[mask], kind="stable")
    assert (np.diff(matched[mask][order]) >= -1e-6).all()


def test_matching_of_a_brain_image_gives_the_wanted_quantiles(anatomy: Anatomy, clean: np.ndarray) -> None:
    wanted = norm(0.6, 0.1).ppf(np.clip(QUANTILES, 1e-3, 1 - 1e-3))
    matched = match_histogram(clean, anatomy.brain, wanted)
    assert np.abs(quantile_function(matched[anatomy.brain]) - wanted).mean() < 0.01


@pytest.mark.parametrize("power", [0.4, 0.8, 1.5, 3.0])
def test_matching_does_not_depend_on_an_increasing_curve(rng: np.random.Generator, power: float) -> None:
    data = rng.uniform(0.05, 1, (20, 20, 20)).astype(np.float32)
    mask = np.ones(data.shape, bool)
    curved = match_histogram(900 * data**power - 100, mask, QUANTILES)
    np.testing.assert_allclose(curved, match_histogram(data, mask, QUANTILES), atol=0.002)


def test_matching_to_its_own_quantiles_changes_nothing(rng: np.random.Generator) -> None:
    data, mask = rng.random((9, 9, 9)).astype(np.float32), np.ones((9, 9, 9), bool)
    np.testing.assert_allclose(match_histogram(data, mask, quantile_function(data[mask])), data, atol=1e-6)


@pytest.fixture(scope="module")
def tissues(anatomy: Anatomy, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cohort of one quiet scan: its quantile function and its tissue quantiles."""
    return quantile_function(clean[anatomy.brain]), tissue_quantiles(clean, anatomy.brain)


def tissue_means(image: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Mean of nearly pure grey and white matter."""
    return np.array([image[anatomy.fractions[tissue] > 0.9].mean() for tissue in (1, 2)])


def test_tissues_of_a_noisy_scan_are_matched_better_than_by_its_plain_histogram(
    anatomy: Anatomy, clean: np.ndarray, tissues: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    brain, truth = anatomy.brain, tissue_means(clean, anatomy)
    noisy = (clean + rng.normal(0, 0.06, clean.shape).astype(np.float32)) * brain
    plain, found = (
        tissue_means(image, anatomy)
        for image in (match_histogram(noisy, brain, tissues[0]), match_tissues(noisy, brain, *tissues))
    )
    assert abs(np.diff(found - truth)) < 0.6 * abs(np.diff(plain - truth))


def test_a_scan_matched_to_its_own_tissues_stays(
    anatomy: Anatomy, clean: np.ndarray, tissues: tuple[np.ndarray, np.ndarray]
) -> None:
    brain = anatomy.brain
    np.testing.assert_allclose(match_tissues(clean, brain, *tissues)[brain], clean[brain], atol=0.005)


@pytest.mark.parametrize("power", [0.4, 2.5])
def test_matched_tissues_do_not_depend_on_an_increasing_curve(
    anatomy: Anatomy, clean: np.ndarray, tissues: tuple[np.ndarray, np.ndarray], power: float
) -> None:
    brain = anatomy.brain
    expected = match_tissues(clean, brain, *tissues)
    curved = match_tissues((900 * clean**power).astype(np.float32), brain, *tissues)
    assert np.abs(curved - expected).mean() < 0.002
    assert not curved[~brain].any()


def test_tissue_quantiles_do_not_depend_on_voxels_outside_the_mask(rng: np.random.Generator) -> None:
    data, mask = rng.random((12, 12, 12)).astype(np.float32), np.zeros((12, 12, 12), bool)
    mask[3:9, 2:10, 3:8] = True
    loud = np.where(mask, data, 50).astype(np.float32)
    np.testing.assert_array_equal(tissue_quantiles(loud, mask), tissue_quantiles(data, mask))
    np.testing.assert_allclose(tissue_quantiles(np.full_like(data, 0.7), mask), 0.7, rtol=1e-5)  # no dark rim


@pytest.mark.parametrize("sigma", [0.01, 0.2])
def test_noise_level_is_that_of_white_noise_inside_the_mask(rng: np.random.Generator, sigma: float) -> None:
    data, mask = rng.normal(0, 5, (24, 24, 24)), np.zeros((24, 24, 24), bool)
    mask[4:20, 4:20, 4:20] = True
    data[mask] = (3 + rng.normal(0, sigma, data.shape))[mask]
    assert noise_level(data, mask) == pytest.approx(sigma, rel=0.05)
    assert noise_level(data, np.zeros_like(mask)) == 0
