"""The order of the tissues is measured after removing the receive field."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.config import QualityConfig
from mmh_ray.errors import RefusedError
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.volume import Volume
from mmh_ray.quality.checks import check_scan
from mmh_ray.quality.describe import describe_scan
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def person() -> Anatomy:
    """A person on the template's axes."""
    return simulate_anatomy(Person(3), 3.0)


def from_the_middle(distance: np.ndarray, _place: np.ndarray) -> np.ndarray:
    """A 7 T field that is brightest in the middle."""
    return 0.25 + 1.6 * np.exp(-(distance**2) / (2 * 55**2))


def from_the_back(_distance: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A surface coil: eight times brighter at the back than in front."""
    return np.exp(-place[1] / 70)


def askew(_distance: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.exp((place[0] + place[2] - 0.5 * place[1]) / 90)


def figures_of(person: Anatomy, data: np.ndarray) -> dict[str, float]:
    registration = Registration(np.eye(4), 0.6, "given space")
    return describe_scan(Volume(data.astype(np.float32), person.affine), person.brain, registration)


@pytest.mark.slow
@pytest.mark.parametrize("field", [from_the_middle, from_the_back, askew])
@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_a_strong_field_does_not_hide_the_order_of_the_tissues(person: Anatomy, sequence: str, field) -> None:
    places = np.argwhere(np.ones(person.brain.shape, bool)) @ person.affine[:3, :3].T + person.affine[:3, 3]
    off = (places - places[person.brain.ravel()].mean(axis=0)).T.reshape(3, *person.brain.shape)
    data = render(person, SITES[0], sequence, np.random.default_rng(0), 3.0)
    plain = figures_of(person, data)
    shaded = figures_of(person, data * field(np.linalg.norm(off, axis=0), off))
    for name in ("fluid_contrast", "white_contrast"):
        assert shaded[name] == pytest.approx(plain[name], abs=0.1)
    check_scan(sequence, shaded, QualityConfig())
    with pytest.raises(RefusedError):
        check_scan("T2w" if sequence == "T1w" else "T1w", shaded, QualityConfig())


def test_a_field_does_not_create_an_order_in_noise(person: Anatomy, rng: np.random.Generator) -> None:
    ramp = np.linspace(0.3, 3, person.brain.shape[2])
    figures = figures_of(person, rng.rayleigh(1, person.brain.shape) * person.brain * ramp)
    for sequence in ("T1w", "T2w"):
        with pytest.raises(RefusedError):
            check_scan(sequence, figures, QualityConfig())
