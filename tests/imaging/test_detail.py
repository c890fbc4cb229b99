"""Curve and field are recovered and applied to every voxel; what the network invents, blurs or erases has no effect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.imaging.detail import NOISE, continued, fit_curve, fit_mapping, without_noise
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

pytestmark = pytest.mark.fast

SPACING = 4.0
STYLES = (lambda unit: unit, lambda unit: np.maximum(unit, 0) ** 0.7, lambda unit: 0.2 + 0.7 * unit)


@pytest.fixture(scope="module")
def person() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A noisy brain without a cavity and with it, where that is, and the brain."""
    rng = np.random.default_rng(3)
    whole, cyst = (simulate_anatomy(Person(11, age=75, ventricles=1, cavities=count), SPACING) for count in (0, 1))
    noise = rng.normal(0, 0.03, whole.brain.shape)
    plain, scan = (np.abs(canonical(one, "T2w", SPACING) / 2 + noise) * whole.brain for one in (whole, cyst))
    place = (cyst.fractions[0] > 0.8) & (whole.fractions[0] < 0.2)
    return plain.astype(np.float32), scan.astype(np.float32), place, whole.brain


def shown(image: np.ndarray, place: np.ndarray, brain: np.ndarray) -> float:
    """Contrast of a region with its surroundings."""
    around = ndimage.binary_dilation(place, iterations=3) & ~ndimage.binary_dilation(place) & brain
    return float(image[place].mean() - image[around].mean())


def way_back(scan: np.ndarray, styled: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The scan under the curve and the field of a network's image."""
    curve, field = fit_mapping(scan, styled, brain, SPACING)
    return curve.apply(field * scan) * brain


@pytest.mark.parametrize("style", STYLES)
def test_a_curve_is_recovered(person: tuple[np.ndarray, ...], style: Callable[[np.ndarray], np.ndarray]) -> None:
    _, scan, _, brain = person
    curve = fit_curve(scan, style(scan) * brain, brain)
    low, high = np.quantile(scan[brain], [0.1, 0.995])
    places = np.linspace(low, high, 50)
    np.testing.assert_allclose(curve.apply(places), style(places), atol=0.02)


def test_a_network_that_changes_nothing_changes_nothing(person: tuple[np.ndarray, ...]) -> None:
    _, scan, _, brain = person
    curve, field = fit_mapping(scan, scan, brain, SPACING)
    np.testing.assert_allclose(field, 1, atol=1e-4)
    np.testing.assert_allclose(curve.apply(scan), scan, atol=1e-4)


def test_a_curve_never_falls_and_maps_zero_to_zero(rng: np.random.Generator, ball: np.ndarray) -> None:
    for styled in (rng.random(ball.shape), 1 - np.indices(ball.shape)[0] / ball.shape[0], np.zeros(ball.shape)):
        curve = fit_curve(np.indices(ball.shape)[0] / ball.shape[0], styled.astype(np.float32), ball)
        values = curve.apply(np.linspace(0, 3, 400))
        assert (np.diff(values) >= 0).all()
        assert values[0] == 0
        assert np.isfinite(values).all()


def test_no_tissue_becomes_a_single_level(person: tuple[np.ndarray, ...]) -> None:
    """The network reverses the order of the darker half; without a least slope the best increasing curve is flat."""
    scan, _, _, brain = person
    middle = np.median(scan[brain])
    styled = np.where(scan < middle, 2 * middle - scan, middle + 2 * (scan - middle)) * brain
    curve = fit_curve(scan, styled.astype(np.float32), brain)
    lower, upper = np.quantile(scan[brain], [0.1, 0.45])
    below, above = curve.apply(np.array([lower, upper]))
    assert above - below > 0.25 * (upper - lower)


def test_enhancement_brighter_than_all_tissue_keeps_its_contrast(person: tuple[np.ndarray, ...]) -> None:
    """A rim at 1.5 times the brightest tissue, which the network saturates."""
    plain, _, _, brain = person
    rim = np.zeros_like(brain)
    rim[tuple(np.argwhere(ndimage.binary_erosion(brain, iterations=6))[::200].T)] = True
    top = float(np.quantile(plain[brain], 0.995))
    scan = np.where(rim, 1.5 * top, plain).astype(np.float32)
    found = way_back(scan, np.minimum(scan, top), brain)
    assert (found[rim].mean() - top) / (0.5 * top) > 0.75


@pytest.mark.parametrize("strength", [0.15, 0.4])
def test_a_field_is_recovered(person: tuple[np.ndarray, ...], strength: float) -> None:
    _, scan, _, brain = person
    field = np.exp(strength * np.linspace(-1, 1, brain.shape[1]))[:, None] * np.ones(brain.shape)
    curve, found = fit_mapping((scan * field).astype(np.float32), scan, brain, SPACING)
    left = np.log(found * field)[ndimage.binary_erosion(brain, iterations=2)]
    assert left.std() < 0.35 * np.log(field)[brain].std()
    assert (
        np.abs(curve.apply(found * scan * field) - scan)[brain].mean() < 0.3 * np.abs(scan * field - scan)[brain].mean()
    )


def test_a_cavity_that_the_network_erases_is_kept(person: tuple[np.ndarray, ...]) -> None:
    plain, scan, place, brain = person
    styled = plain**0.7 * brain  # a new style, and no cavity
    assert shown(scan**0.7, place, brain) > 0.3
    assert abs(shown(styled, place, brain)) < 0.1
    found = way_back(scan, styled, brain)
    assert shown(found, place, brain) == pytest.approx(shown(scan**0.7, place, brain), rel=0.1)


def test_a_cavity_that_the_network_invents_is_ignored(person: tuple[np.ndarray, ...]) -> None:
    plain, scan, place, brain = person
    styled = scan**0.7 * brain
    assert shown(styled, place, brain) > 0.3
    found = way_back(plain, styled, brain)
    assert abs(shown(found, place, brain) - shown(plain**0.7, place, brain)) < 0.03


def test_a_lesion_that_the_network_blurs_is_kept(person: tuple[np.ndarray, ...]) -> None:
    plain, _, _, brain = person
    rng, place = np.random.default_rng(0), np.zeros_like(brain)
    for centre in rng.choice(np.argwhere(ndimage.binary_erosion(brain, iterations=5)), 4, replace=False):
        place[tuple(slice(at, at + 2) for at in centre)] = True
    scan = np.where(place, 0.9, plain).astype(np.float32)
    styled = ndimage.gaussian_filter(scan, 0.8) * brain
    wanted = shown(scan, place, brain)
    assert shown(styled, place, brain) < 0.4 * wanted
    assert shown(way_back(scan, styled, brain), place, brain) == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("level", [0.02, 0.05])
def test_noise_is_reduced_to_the_same_level_in_all_scans(rng: np.random.Generator, level: float) -> None:
    styled, noise = np.full((20, 20, 20), 0.5, np.float32), rng.normal(0, level, (20, 20, 20)).astype(np.float32)
    found = without_noise(styled, styled + noise, level, np.ones(styled.shape, bool)) - styled
    assert (np.abs(found) <= np.abs(noise) + 1e-6).all()
    assert found.std() == pytest.approx(NOISE, rel=0.2)


def test_a_scan_with_less_noise_than_that_is_not_changed(rng: np.random.Generator) -> None:
    styled, noise = np.full((20, 20, 20), 0.5, np.float32), rng.normal(0, 0.01, (20, 20, 20)).astype(np.float32)
    found = without_noise(styled, styled + noise, 0.01, np.ones(styled.shape, bool))
    np.testing.assert_allclose(found, styled + noise, atol=1e-6)


def test_a_lesion_above_the_noise_is_kept_whole_and_nothing_else_appears(rng: np.random.Generator) -> None:
    styled, lesion = np.full((20, 20, 20), 0.5, np.float32), np.zeros((20, 20, 20), bool)
    lesion[8:11, 9:12, 8:11] = True
    noise = rng.normal(0, 0.03, styled.shape).astype(np.float32)
    found = without_noise(styled, styled + 0.4 * lesion + noise, 0.03, np.ones(styled.shape, bool)) - styled
    assert found[lesion].mean() == pytest.approx(0.4, rel=0.05)
    assert found[~lesion].std() < 0.03


def test_a_noiseless_scan_keeps_all_its_detail(rng: np.random.Generator) -> None:
    textured = rng.random((20, 20, 20), np.float32)
    found = without_noise(np.zeros_like(textured), textured, 0.0, np.ones(textured.shape, bool))
    np.testing.assert_allclose(found, textured, atol=1e-6)


def test_voxels_outside_the_mask_do_not_count_as_detail(ball: np.ndarray, rng: np.random.Generator) -> None:
    styled, noise = np.full(ball.shape, 0.5, np.float32), rng.normal(0, 0.05, ball.shape)
    projected = np.where(ball, styled + noise, 0)
    dark, level = (without_noise(styled, image, 0.05, ball) for image in (projected, styled + noise))
    np.testing.assert_allclose(dark[ball], level[ball], atol=1e-6)


def test_continued_values_are_those_of_the_nearest_voxel_inside(ball: np.ndarray) -> None:
    left = np.where(np.arange(ball.shape[0]) < 8, 1.0, 2.0)[:, None, None] * np.ones(ball.shape)
    found = continued(np.where(ball, left, -9), ball)
    np.testing.assert_array_equal(found[[0, -1]], left[[0, -1]])
    np.testing.assert_array_equal(found[ball], left[ball])


def test_the_darkest_voxels_are_not_lifted_above_a_line_to_zero(person: tuple[np.ndarray, ...]) -> None:
    """Bone inside the mask that the network treats as tissue does not brighten the surroundings of the brain."""
    _, scan, _, brain = person
    bone = brain & ~ndimage.binary_erosion(brain) & (np.indices(brain.shape).sum(axis=0) % 4 == 0)
    scan = np.where(bone, 0.05, scan)
    styled = np.where(bone, 0.45, 0.2 + 0.7 * scan) * brain
    low = float(np.quantile(scan[brain & ~bone], 0.05))
    curve = fit_curve(scan, styled.astype(np.float32), brain)
    assert curve.apply(np.array([0.05]))[0] < 1.3 * 0.05 / low * curve.apply(np.array([low]))[0]
