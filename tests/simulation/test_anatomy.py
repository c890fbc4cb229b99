"""Anatomies: reproducible, valid tissue fractions, and age, lesions, cavities, ventricles where they belong."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.simulation.anatomy import TISSUES, Anatomy, Person, simulate_anatomy, smooth_noise

pytestmark = pytest.mark.fast

CSF, WHITE, LESION = (TISSUES.index(name) for name in ("CSF", "WM", "lesion"))


def digest(anatomy: Anatomy) -> str:
    """Fingerprint of every voxel."""
    return hashlib.sha256(anatomy.fractions.tobytes() + anatomy.scalp.tobytes() + anatomy.affine.tobytes()).hexdigest()


def amounts(spacing: float, **traits: float) -> np.ndarray:
    """Volume of each tissue in voxels, ``(4,)``, of the person of seed 3."""
    return simulate_anatomy(Person(3, **traits), spacing).fractions.sum((1, 2, 3))  # type: ignore[arg-type]


def test_same_person_has_the_same_bytes(spacing: float) -> None:
    person = Person(5, age=70, lesions=3, cavities=1, ventricles=1, scalp=True)
    assert digest(simulate_anatomy(person, spacing)) == digest(simulate_anatomy(person, spacing))


def test_other_seed_is_another_brain(spacing: float, anatomy: Anatomy) -> None:
    other = simulate_anatomy(Person(2), spacing)
    assert other.fractions.shape == anatomy.fractions.shape
    assert np.abs(other.fractions - anatomy.fractions).sum(0)[anatomy.brain].mean() > 0.1


@pytest.mark.parametrize(
    "person",
    [
        Person(0),
        Person(1, age=90, lesions=8),
        Person(2, ventricles=3, cavities=3),
        Person(3, age=5, lesions=4, scalp=True),
    ],
)
def test_fractions_are_shares(spacing: float, person: Person) -> None:
    drawn = simulate_anatomy(person, spacing)
    assert drawn.fractions.dtype == np.float32
    assert drawn.fractions.min() >= -1e-6
    assert drawn.fractions.sum(0).max() <= 1 + 1e-5
    # a voxel at the border is partly air, and at 6 mm so may be its neighbour
    eroded = ndimage.binary_erosion(drawn.brain, np.ones((3, 3, 3)), iterations=2)
    np.testing.assert_allclose(drawn.fractions.sum(0)[eroded], 1, atol=0.01)
    assert 0 <= drawn.scalp.min() <= drawn.scalp.max() <= 1
    assert 0.15 < drawn.brain.mean() < 0.5


def test_affine_puts_the_brain_around_the_origin_at_the_spacing(spacing: float, anatomy: Anatomy) -> None:
    np.testing.assert_allclose(np.abs(np.diag(anatomy.affine[:3, :3])), spacing)
    centre = anatomy.affine @ np.append(np.argwhere(anatomy.brain).mean(0), 1)
    assert np.abs(centre[:3] - [0, -18, 10]).max() < 15  # the middle of the ICBM-152 brain, in mm


def test_brain_volume_is_that_of_a_person(spacing: float, anatomy: Anatomy) -> None:
    litres = anatomy.fractions.sum() * spacing**3 / 1e6
    assert 1.1 < litres < 2.4


def test_age_turns_cortex_into_fluid(spacing: float) -> None:
    fluid, grey = np.array([amounts(spacing, age=age)[:2] for age in (20, 45, 70, 95)]).T
    assert (np.diff(fluid) > 0).all()
    assert (np.diff(grey) < 0).all()
    assert fluid[-1] > 1.5 * fluid[0]


def test_ventricles_grow_on_request(spacing: float) -> None:
    fluid = [amounts(spacing, ventricles=size)[CSF] for size in (0, 1, 3)]
    assert fluid[0] < fluid[1] < fluid[2]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_grown_ventricles_hold_nothing_but_fluid(spacing: float, size: int) -> None:
    usual, grown = (simulate_anatomy(Person(3, ventricles=count), spacing).fractions[CSF] for count in (0, size))
    assert (grown[usual > 0.9] > 0.8).mean() > 0.9


def test_lesions_appear_only_on_request_and_replace_white_matter(spacing: float) -> None:
    without, with_lesions = amounts(spacing), amounts(spacing, lesions=6)
    assert without[LESION] == 0
    assert with_lesions[LESION] > 1
    assert with_lesions[WHITE] < without[WHITE]
    assert with_lesions.sum() == pytest.approx(without.sum(), rel=1e-3)


def test_cavities_are_filled_with_fluid(spacing: float) -> None:
    healthy, cut = (simulate_anatomy(Person(3, cavities=count), spacing).fractions for count in (0, 3))
    emptied = (healthy[WHITE] > 0.9) & (cut[CSF] > 0.9)
    assert emptied.sum() >= 3


def test_scalp_lies_outside_the_brain(spacing: float, anatomy: Anatomy) -> None:
    assert not anatomy.scalp.any()
    headed = simulate_anatomy(Person(1, scalp=True), spacing)
    assert headed.scalp.sum() > 100
    assert not headed.scalp[headed.brain].any()
    np.testing.assert_array_equal(headed.fractions, anatomy.fractions)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 40.0])
def test_smooth_noise_is_normalised(rng: np.random.Generator, sigma: float) -> None:
    field = smooth_noise(rng, (9, 14, 11), sigma)
    assert field.shape == (9, 14, 11)
    assert field.mean() == pytest.approx(0, abs=1e-4)
    assert field.std() == pytest.approx(1, abs=1e-4)


def test_wider_knots_make_smoother_noise(rng: np.random.Generator) -> None:
    roughness = [np.abs(np.diff(smooth_noise(rng, (24, 24, 24), knot), axis=0)).mean() for knot in (1.0, 4.0, 16.0)]
    assert roughness[0] > 2 * roughness[1] > 4 * roughness[2]
