"""Detail projection: an affine style is recovered exactly where there is texture, and continued without a seam."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.imaging.anatomy import Person, simulate_anatomy
from mmh_ray.imaging.detail import DOUBT, NOISE, add_detail, continued, keep_levels, local_affine
from mmh_ray.imaging.phantom import canonical, canonical_fluid

pytestmark = pytest.mark.fast

RADIUS = 2


@pytest.fixture
def textured(rng: np.random.Generator, ball: np.ndarray) -> np.ndarray:
    """Strong texture everywhere: local standard deviation about 0.3."""
    return rng.random(ball.shape, np.float32)


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.6, 0.25), (2.5, -0.4), (-0.7, 1.1)])
def test_global_affine_style_is_recovered(textured: np.ndarray, ball: np.ndarray, slope: float, offset: float) -> None:
    found_slope, found_offset = local_affine(textured, slope * textured + offset, ball, RADIUS)
    # the regularisation 1e-4 shortens the slope by 1e-4 / variance of a window, here about 0.1 %
    np.testing.assert_allclose(found_slope, slope, rtol=0.01)
    np.testing.assert_allclose(found_offset, offset, atol=0.01 * abs(slope))


@pytest.mark.parametrize("contrast", [0.0, 0.01, 1.0])
def test_the_scan_itself_has_slope_one_everywhere(textured: np.ndarray, ball: np.ndarray, contrast: float) -> None:
    """However flat it is."""
    scan = 0.5 + contrast * (textured - 0.5)
    slope, offset = local_affine(scan, scan, ball, RADIUS)
    np.testing.assert_allclose(slope, 1, atol=1e-4)
    np.testing.assert_allclose(offset, 0, atol=1e-4)


def test_outside_the_mask_does_not_matter(textured: np.ndarray, ball: np.ndarray) -> None:
    spoiled = np.where(ball, textured, 100).astype(np.float32)
    for found, expected in zip(
        local_affine(spoiled, spoiled, ball, RADIUS), local_affine(textured, textured, ball, RADIUS), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_coefficients_are_continued_outside_the_mask(textured: np.ndarray, ball: np.ndarray) -> None:
    slope, offset = local_affine(textured, 0.5 * textured + 0.2, ball, RADIUS)
    assert not ball[0, 0, 0]
    assert slope[0, 0, 0] == pytest.approx(0.5, rel=0.01)
    assert offset[0, 0, 0] == pytest.approx(0.2, abs=0.01)


def test_flat_scan_takes_the_style_as_an_offset(ball: np.ndarray) -> None:
    styled = np.full(ball.shape, 0.8, np.float32)
    slope, offset = local_affine(np.full(ball.shape, 0.3, np.float32), styled, ball, RADIUS)
    np.testing.assert_allclose(slope, 1, atol=1e-3)
    np.testing.assert_allclose(slope * 0.3 + offset, styled, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 1e-3, 1e3])
def test_coefficients_are_finite(textured: np.ndarray, ball: np.ndarray, level: float) -> None:
    for coefficients in local_affine(level * textured, textured, ball, RADIUS):
        assert np.isfinite(coefficients).all()


def test_edges_come_from_the_scan_and_level_from_the_model(rng: np.random.Generator, ball: np.ndarray) -> None:
    sharp = (np.arange(ball.shape[0]) > 7).astype(np.float32)[:, None, None] * np.ones(ball.shape, np.float32)
    styled = 0.4 * sharp + 0.3
    styled[6:10] = np.array([0.4, 0.45, 0.55, 0.6], np.float32)[:, None, None]  # the model's edge is blurred
    slope, offset = local_affine(sharp, styled, ball, RADIUS)
    projected = slope * sharp + offset
    jump = (projected[8] - projected[7])[ball[8] & ball[7]]
    assert jump.min() > 0.15  # the model's own is 0.1
    assert projected[ball].min() > 0.28


@pytest.mark.parametrize("level", [0.02, 0.05])
def test_scans_of_any_noise_leave_with_the_same(rng: np.random.Generator, level: float) -> None:
    styled, noise = np.full((20, 20, 20), 0.5, np.float32), rng.normal(0, level, (20, 20, 20)).astype(np.float32)
    found = add_detail(styled, styled + noise, np.full(styled.shape, level), np.ones(styled.shape, bool)) - styled
    assert (np.abs(found) <= np.abs(noise) + 1e-6).all()
    assert found.std() == pytest.approx(NOISE, rel=0.2)


def test_a_scan_quieter_than_that_stays_whole(rng: np.random.Generator) -> None:
    styled, noise = np.full((20, 20, 20), 0.5, np.float32), rng.normal(0, 0.01, (20, 20, 20)).astype(np.float32)
    found = add_detail(styled, styled + noise, np.full(styled.shape, 0.01), np.ones(styled.shape, bool))
    np.testing.assert_allclose(found, styled + noise, atol=1e-6)


def test_a_lesion_above_the_noise_is_kept_whole_and_nothing_else_appears(rng: np.random.Generator) -> None:
    styled, lesion = np.full((20, 20, 20), 0.5, np.float32), np.zeros((20, 20, 20), bool)
    lesion[8:11, 9:12, 8:11] = True
    noise = rng.normal(0, 0.03, styled.shape).astype(np.float32)
    found = (
        add_detail(styled, styled + 0.4 * lesion + noise, np.full(styled.shape, 0.03), np.ones(styled.shape, bool))
        - styled
    )
    assert found[lesion].mean() == pytest.approx(0.4, rel=0.05)
    assert found[~lesion].std() < 0.03


def test_a_noiseless_scan_keeps_all_its_detail(textured: np.ndarray) -> None:
    styled = np.zeros_like(textured)
    found = add_detail(styled, textured, np.zeros_like(textured), np.ones(textured.shape, bool))
    np.testing.assert_allclose(found, textured, atol=1e-6)


def test_what_lies_outside_the_mask_does_not_pass_for_detail(ball: np.ndarray, rng: np.random.Generator) -> None:
    styled, noise = np.full(ball.shape, 0.5, np.float32), rng.normal(0, 0.05, ball.shape)
    projected = np.where(ball, styled + noise, 0)
    dark, level = (add_detail(styled, p, np.full(ball.shape, 0.05), ball) for p in (projected, styled + noise))
    np.testing.assert_allclose(dark[ball], level[ball], atol=1e-6)


def test_continued_values_are_those_of_the_nearest_voxel_inside(ball: np.ndarray) -> None:
    left = np.where(np.arange(ball.shape[0]) < 8, 1.0, 2.0)[:, None, None] * np.ones(ball.shape)
    found = continued(np.where(ball, left, -9), ball)
    np.testing.assert_array_equal(found[[0, -1]], left[[0, -1]])
    np.testing.assert_array_equal(found[ball], left[ball])


@pytest.fixture(scope="module")
def person() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A noisy brain with a cavity and without, what has a lesion's place, and the brain."""
    rng = np.random.default_rng(3)
    whole, cyst = (simulate_anatomy(Person(11, age=75, ventricles=1, cavities=count), 4.0) for count in (0, 1))
    noise = rng.normal(0, 0.03, whole.brain.shape)
    plain, scan = (np.abs(canonical(one, "T2w", 4.0) / 2 + noise) * whole.brain for one in (whole, cyst))
    place = (cyst.fractions[0] > 0.8) & (whole.fractions[0] < 0.2)
    return plain.astype(np.float32), scan.astype(np.float32), place, whole.brain


def shown(image: np.ndarray, place: np.ndarray, brain: np.ndarray) -> float:
    """Contrast of a place with what lies around it."""
    around = ndimage.binary_dilation(place, iterations=3) & ~ndimage.binary_dilation(place) & brain
    return float(image[place].mean() - image[around].mean())


def test_a_model_that_erases_a_cavity_is_not_believed(person: tuple[np.ndarray, ...]) -> None:
    plain, scan, place, brain = person
    styled = (plain**0.7 * brain).astype(np.float32)  # a new style, and no cavity
    kept = keep_levels(styled, scan, brain, 4.0)
    assert shown(scan**0.7, place, brain) > 0.3
    assert abs(shown(styled, place, brain)) < 0.1
    assert shown(kept, place, brain) == pytest.approx(shown(scan**0.7, place, brain), rel=0.1)


def test_a_model_that_invents_a_cavity_is_not_believed(person: tuple[np.ndarray, ...]) -> None:
    plain, scan, place, brain = person
    styled = (scan**0.7 * brain).astype(np.float32)
    kept = keep_levels(styled, plain, brain, 4.0)
    assert shown(styled, place, brain) > 0.3
    assert abs(shown(kept, place, brain) - shown(plain**0.7, place, brain)) < 0.03


def test_a_small_lesion_that_the_model_blurs_is_put_right(person: tuple[np.ndarray, ...]) -> None:
    """Blur moves its intensity to its neighbours: no mean over a few voxels tells. Four fifths of the contrast come back."""
    plain, _, _, brain = person
    rng, place = np.random.default_rng(0), np.zeros_like(brain)
    for centre in rng.choice(np.argwhere(ndimage.binary_erosion(brain, iterations=5)), 4, replace=False):
        place[tuple(slice(at, at + 2) for at in centre)] = True
    scan = np.where(place, 0.9, plain).astype(np.float32)
    styled = (ndimage.gaussian_filter(scan, 0.8) * brain).astype(np.float32)
    kept = keep_levels(styled, scan, brain, 4.0)
    wanted = shown(scan, place, brain)
    assert shown(styled, place, brain) < 0.4 * wanted
    assert 0.75 * wanted < shown(kept, place, brain) < 1.05 * wanted


def test_a_curve_a_field_and_less_noise_are_believed(person: tuple[np.ndarray, ...]) -> None:
    _, scan, _, brain = person
    field = np.linspace(0.9, 1.1, brain.shape[1])[:, None]
    styled = (ndimage.gaussian_filter(scan, 0.5) ** 0.7 * field * brain).astype(np.float32)
    moved = np.abs(keep_levels(styled, scan, brain, 4.0) - styled)[brain]
    assert moved.mean() < DOUBT / 10


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_fluid_that_the_model_pales_comes_back(rng: np.random.Generator, sequence: str) -> None:
    """In ventricles that hold most of the brain's fluid, so that the curve's medians go with them; other tissue stays as it is."""
    wide = simulate_anatomy(Person(11, ventricles=3), 4.0)
    brain, fluid = wide.brain, canonical_fluid(sequence)
    scan = np.abs(canonical(wide, sequence, 4.0) + rng.normal(0, 0.02, brain.shape)).astype(np.float32) * brain
    ventricles = ndimage.binary_erosion(wide.fractions[0] > 0.95)
    tissue = brain & (wide.fractions[0] < 0.1)
    pale = np.where(wide.fractions[0] > 0.8, scan + 0.3 * (np.median(scan[brain]) - fluid), scan).astype(np.float32)
    left, kept = (keep_levels(pale, scan, brain, 4.0, level) for level in (np.nan, fluid))
    lost, still = (abs(image[ventricles].mean() - fluid) for image in (left, kept))
    assert lost > 0.8 * abs(pale[ventricles].mean() - fluid)
    assert still < 0.5 * lost  # the rest is too little to be doubted, or taken for a field
    assert np.abs(kept - left)[tissue].mean() < 0.002
    paler = (fluid + np.median(scan[brain])) / 2  # than the model's: nothing is taken away
    np.testing.assert_array_equal(keep_levels(pale, scan, brain, 4.0, paler), left)


def test_ventricles_that_show_no_pure_fluid_decide_nothing(rng: np.random.Generator) -> None:
    narrow = simulate_anatomy(Person(11, age=20), 4.0)
    brain = narrow.brain
    scan = np.abs(canonical(narrow, "T2w", 4.0) + rng.normal(0, 0.01, brain.shape)).astype(np.float32) * brain
    left, kept = (keep_levels(0.9 * scan, scan, brain, 4.0, level) for level in (np.nan, canonical_fluid("T2w")))
    np.testing.assert_array_equal(kept, left)
