"""One simulated person at a coarse spacing, shared by the tests of this room, and helpers for regions."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.imaging.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.imaging.phantom import canonical

SPACING = 6.0


@pytest.fixture(scope="session")
def spacing() -> float:
    """Voxel edge in mm of the shared anatomy."""
    return SPACING


@pytest.fixture(scope="session")
def anatomy() -> Anatomy:
    """A healthy person without a scalp."""
    return simulate_anatomy(Person(1), SPACING)


@pytest.fixture(scope="session")
def clean(anatomy: Anatomy) -> np.ndarray:
    """The noise-free T1w rendering of the shared anatomy."""
    return canonical(anatomy, "T1w", SPACING)


@pytest.fixture(scope="session")
def ball() -> np.ndarray:
    """An ellipsoid ``(16, 20, 14)`` bool that touches no border."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (16, 20, 14)], indexing="ij")
    return sum(axis**2 for axis in axes) < 0.7
