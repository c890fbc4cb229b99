"""The brain extraction network: its input and its output."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.imaging.brain_extractor import MULTIPLE, REACH_MM, SPACING_MM, WEIGHTS, brain_distance, scaled_head
from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def head(spacing: float) -> tuple[Volume, Anatomy]:
    """A scan of a person with a scalp."""
    anatomy = simulate_anatomy(Person(4, scalp=True), spacing)
    scan = render(anatomy, SITES[0], "T1w", np.random.default_rng(0), spacing)
    return Volume(scan, anatomy.affine), anatomy


def test_the_grid_holds_the_field_of_view_of_an_oblique_scan(head: tuple[Volume, Anatomy]) -> None:
    volume, _ = head
    turned = volume.affine.copy()
    turned[:3, :3] = nib.eulerangles.euler2mat(0.2, 0.1, -0.3) @ turned[:3, :3]
    distance_mm, affine = brain_distance(Volume(volume.data, turned))
    assert all(n % MULTIPLE == 0 for n in distance_mm.shape)
    np.testing.assert_array_equal(affine[:3, :3], np.eye(3) * SPACING_MM)
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in volume.data.shape])))
    voxels = nib.affines.apply_affine(np.linalg.inv(affine) @ turned, corners)
    assert (voxels >= -1e-6).all()
    assert (voxels <= np.array(distance_mm.shape) - 1 + 1e-6).all()
    assert np.abs(distance_mm).max() <= REACH_MM


def test_the_unit_of_a_scan_does_not_matter(head: tuple[Volume, Anatomy]) -> None:
    volume, _ = head
    once = scaled_head(volume.data)
    np.testing.assert_allclose(scaled_head(volume.data * np.float32(1024)), once, rtol=1e-6)
    assert once.min() >= 0
    assert once.max() <= 2


def test_an_empty_scan_is_scaled_without_an_error() -> None:
    assert not scaled_head(np.zeros((8, 8, 8), np.float32)).any()


def test_the_brain_is_inside_and_the_scalp_outside(head: tuple[Volume, Anatomy]) -> None:
    volume, anatomy = head
    distance_mm, affine = brain_distance(volume)
    places = np.argwhere(anatomy.brain) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    middle = places.mean(axis=0)
    voxel = np.round((np.linalg.inv(affine) @ [*middle, 1])[:3]).astype(int)
    assert distance_mm[tuple(voxel)] > 6
    assert distance_mm[0, 0, 0] < -6


def test_the_shipped_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size < 2e6
