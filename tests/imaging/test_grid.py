"""Resampling between grids."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmh_ray.imaging.grid import to_grid

pytestmark = pytest.mark.fast

SHAPE = (40, 36, 44)
TARGET_SHAPE = (7, 6, 8)
TURN = Rotation.from_euler("xyz", [20, -10, 5], degrees=True).as_matrix()


def target_affine(turn: np.ndarray, first_place: tuple[float, ...]) -> np.ndarray:
    """A grid of 3 mm, turned, with its first voxel at a place in mm."""
    affine = np.eye(4)
    affine[:3, :3] = 3 * turn
    affine[:3, 3] = first_place
    return affine


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(
    ("turn", "first_place"),
    [
        (np.eye(3), (9.0, 8.0, 10.0)),
        (np.eye(3), (9.4, 8.2, 10.7)),
        (TURN, (8.0, 5.0, 12.0)),
        (TURN, (-9.0, 20.0, 30.0)),
        (np.eye(3), (60.0, 60.0, 60.0)),
    ],
    ids=["on voxels", "between voxels", "turned", "partly outside", "outside"],
)
def test_a_part_of_a_volume_is_resampled_as_if_all_of_it_were_smoothed(
    rng: np.random.Generator, order: int, turn: np.ndarray, first_place: tuple[float, ...]
) -> None:
    """To the bit: only the surroundings of the target are smoothed."""
    data = rng.random(SHAPE, np.float32)
    affine = np.diag([1.0, 1.5, 1.0, 1.0])
    target = target_affine(turn, first_place)
    step = np.linalg.inv(affine) @ target
    voxels_crossed = np.linalg.norm(step[:3, :3], axis=1)
    sigma = 0.4 * np.sqrt(voxels_crossed**2 - 1)
    smooth = ndimage.gaussian_filter(data, sigma)
    expected = ndimage.affine_transform(smooth, step, output_shape=TARGET_SHAPE, order=order, mode="grid-constant")
    np.testing.assert_array_equal(to_grid(data, affine, target, TARGET_SHAPE, order), expected)
