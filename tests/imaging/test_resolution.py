"""Effective resolution: thick slices are detected, also if they are stored on thin voxels; other scans are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.resolution import COARSE, describe, fwhm_mm, sharp_planes
from mmh_ray.imaging.volume import Volume

pytestmark = pytest.mark.fast

SHAPE = (48, 48, 48)
MASK = np.ones(SHAPE, bool)


@pytest.fixture
def even(rng: np.random.Generator) -> Volume:
    """Texture of the same smoothness along all axes, 1 mm voxels."""
    knots = Volume(rng.random((20, 20, 20), np.float32), np.diag([3.0, 3, 3, 1]))
    return Volume(to_grid(knots.data, knots.affine, np.eye(4), SHAPE, order=3), np.eye(4))


def test_even_texture_is_even(even: Volume) -> None:
    widths = fwhm_mm(even.data, MASK, even.spacing)
    assert max(widths) / min(widths) < 1.15
    assert "coarser" not in describe(even, MASK)


def test_fwhm_of_white_noise_under_a_gaussian_is_that_of_the_gaussian(rng):
    noise = rng.normal(size=(48, 48, 48))
    sigma = (1.5, 2.0, 2.5)
    widths = fwhm_mm(ndimage.gaussian_filter(noise, sigma), np.ones(noise.shape, bool), (1.0, 1.0, 2.0))
    assert widths == pytest.approx([2.3548 * 1.5, 2.3548 * 2.0, 2.3548 * 2.5 * 2], rel=0.06)
    assert max(fwhm_mm(noise, np.ones(noise.shape, bool), (1.0, 1.0, 1.0))) < 0.6


@pytest.mark.parametrize("axis", range(3))
def test_thick_slices_are_detected_even_on_thin_voxels(even: Volume, axis: int) -> None:
    factor, shape = np.ones(4), list(SHAPE)
    factor[axis], shape[axis] = 6, 8
    thick = Volume(to_grid(even.data, even.affine, np.diag(factor), tuple(shape)), np.diag(factor))
    thin = Volume(to_grid(thick.data, thick.affine, np.eye(4), SHAPE), np.eye(4))
    for scan in (thick, thin):
        widths = fwhm_mm(scan.data, np.ones(scan.data.shape, bool), scan.spacing)
        assert np.argmax(widths) == axis
        assert max(widths) / min(widths) > COARSE
        assert f"coarser along axis {'ijk'[axis]}" in describe(scan, np.ones(scan.data.shape, bool))


@pytest.mark.parametrize(
    ("affine", "pixel_mm", "planes"),
    [
        (np.diag([1.0, 1, 1, 1]), 1.0, [True, True, True]),
        (np.diag([1.0, 1, 5, 1]), 1.0, [True, False, False]),
        (np.diag([1.0, 1, 5, 1]), 3.0, [True, False, False]),
        (np.diag([1.0, 1, 2, 1]), 3.0, [True, True, True]),  # less than a pixel
        (np.diag([1.0, 5, 5, 1]), 1.0, [True, True, True]),  # bars, which every plane crosses
        (np.diag([1.0, -5, 1, 1]), 1.0, [False, True, False]),
        (np.diag([1.0, 1, 5, 1])[:, [2, 0, 1, 3]], 1.0, [True, False, False]),  # stored slice first
        (np.array([[0.0, 0, 5, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]), 1.0, [False, False, True]),
    ],
)
def test_only_the_plane_along_thick_slices_is_sharp(affine: np.ndarray, pixel_mm: float, planes: list[bool]) -> None:
    assert sharp_planes(affine, pixel_mm).tolist() == planes


def test_smoothness_is_in_millimetres_and_free_of_units(even: Volume) -> None:
    double = Volume(1000 * even.data, np.diag([2.0, 2, 2, 1]))
    expected = [2 * width for width in fwhm_mm(even.data, MASK, even.spacing)]
    np.testing.assert_allclose(fwhm_mm(double.data, MASK, double.spacing), expected, rtol=1e-3)
