"""Slabs: cutting and assembling gives the volume back, for every plane, thickness and padding."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.imaging.slices import NORMAL, PLANES, along, assemble, crop_slices, pad_slices, slice_shape, take_slabs

pytestmark = pytest.mark.fast

SHAPE = (5, 8, 6)


@pytest.fixture
def volume(rng: np.random.Generator) -> np.ndarray:
    """Random voxels, none zero."""
    return rng.uniform(1, 2, SHAPE).astype(np.float32)


@pytest.mark.parametrize("slab", [1, 3, 5])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("size", [(6, 8), (11, 9), (16, 16)])
def test_taking_every_slab_and_assembling_is_the_identity(
    volume: np.ndarray, plane: str, slab: int, size: tuple[int, int]
) -> None:
    indices = range(SHAPE[NORMAL[plane]])
    slabs = take_slabs(volume, plane, indices, slab, size)
    assert slabs.shape == (len(indices), slab, *size)
    np.testing.assert_allclose(assemble(slabs, plane, indices, SHAPE), volume, rtol=1e-6)


@pytest.mark.parametrize("plane", PLANES)
def test_middle_of_a_slab_is_its_slice(volume: np.ndarray, plane: str) -> None:
    slices = along(volume, plane)
    slabs = crop_slices(take_slabs(volume, plane, [2], 3, (6, 8)), *slices.shape[1:])
    np.testing.assert_array_equal(slabs[0], slices[1:4])


def test_planes_are_stacked_along_their_normals(volume: np.ndarray) -> None:
    np.testing.assert_array_equal(along(volume, "axial")[1], volume[:, :, 1])
    np.testing.assert_array_equal(along(volume, "coronal")[1], volume[:, 1, :])
    np.testing.assert_array_equal(along(volume, "sagittal")[1], volume[1].T)


def test_beyond_the_volume_is_zero(volume: np.ndarray) -> None:
    slabs = take_slabs(volume, "sagittal", [0, 4], 3, (8, 8))
    assert not slabs[0, 0].any()
    assert not slabs[1, 2].any()
    assert crop_slices(slabs, 6, 8)[0, 1:].all()


def test_beyond_the_slice_is_zero(volume: np.ndarray) -> None:
    slabs = take_slabs(volume, "axial", [3], 1, (12, 12))
    assert np.count_nonzero(slabs) == 5 * 8
    assert slabs.sum() == pytest.approx(volume[:, :, 3].sum())


@pytest.mark.parametrize(("height", "width", "size"), [(3, 4, (4, 4)), (3, 4, (9, 5)), (5, 5, (5, 5)), (1, 6, (7, 8))])
def test_cropping_undoes_padding(rng: np.random.Generator, height: int, width: int, size: tuple[int, int]) -> None:
    images = rng.random((2, 3, height, width))
    padded = pad_slices(images, size)
    assert padded.shape == (2, 3, *size)
    np.testing.assert_array_equal(crop_slices(padded, height, width), images)


def test_masks_stay_masks(volume: np.ndarray) -> None:
    assert take_slabs(volume > 1.5, "axial", [0], 3, (8, 8)).dtype == bool


def test_rectangle_holds_every_plane(volume: np.ndarray) -> None:
    height, width = slice_shape(SHAPE)
    assert (height, width) == (6, 8)
    assert all(along(volume, plane).shape[1] <= height and along(volume, plane).shape[2] <= width for plane in PLANES)


def test_overlapping_slabs_are_averaged() -> None:
    slabs = np.zeros((2, 3, 4, 4), np.float32)
    slabs[1] = 3
    axial = assemble(slabs, "axial", [1, 2], (4, 4, 5))[0, 0]
    np.testing.assert_allclose(axial, [0, 1.5, 1.5, 3, 0])  # slice 0: first only; 3: second only; 4: none
