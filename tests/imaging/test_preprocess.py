"""Preparation: the working image depends on the content in world space, not on the file's axes, units and affine."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mmh_ray.config import GridConfig, PrepareConfig
from mmh_ray.errors import DataError
from mmh_ray.imaging.grid import from_grid, to_grid, working_affine
from mmh_ray.imaging.preprocess import prepare_volume
from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.anatomy import Anatomy

pytestmark = pytest.mark.fast

GRID = GridConfig(6.0, (32, 40, 32))
PLAIN = PrepareConfig(n4=False)
SMALL = GridConfig(2.0, (24, 24, 24))


def world_image(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth scene given in millimetres, and its mask (an off-centre ellipsoid), seen on any grid."""
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    x, y, z = np.moveaxis(indices @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    mask = ((x - 4) / 18) ** 2 + ((y + 3) / 20) ** 2 + ((z - 2) / 15) ** 2 < 1
    return (2 + np.sin(x / 7) + 0.5 * np.cos(y / 9) + z / 40).astype(np.float32), mask


def centred(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Affine with these axes whose grid is centred on the scene."""
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = np.array([4, -3, 2]) - matrix @ (np.array(shape) - 1) / 2
    return affine


def prepared_scene(matrix: np.ndarray, shape: tuple[int, ...]):
    """The scene on a native grid, prepared, with the truth on the working grid it got."""
    affine = centred(matrix, shape)
    data, mask = world_image(affine, shape)
    prepared = prepare_volume(Volume(data, affine), mask, SMALL, PLAIN)
    return prepared, *world_image(prepared.affine, SMALL.shape)


def rotation(degrees: float) -> np.ndarray:
    """Turn about z, then about x."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


AXES = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "oblique": rotation(20),
    "oblique and flipped": rotation(-35) @ np.diag([1.0, -1.0, 1.0]),
    **{f"permuted {order}": np.eye(3)[:, list(order)] for order in permutations(range(3)) if order != (0, 1, 2)},
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
def test_axes_of_the_file_do_not_matter(axes: np.ndarray) -> None:
    prepared, truth, inside = prepared_scene(axes * [1.0, 1.5, 2.0], (64, 48, 36))
    assert (prepared.mask != inside).mean() < 0.02
    both = prepared.mask & inside
    np.testing.assert_allclose(prepared.scaling.undo(prepared.image)[both], truth[both], atol=0.05)


def test_native_to_grid_and_back_keeps_a_smooth_image() -> None:
    shape = (44, 44, 36)
    native = centred(rotation(15) * [1.5, 1.5, 2.0], shape)
    data, mask = world_image(native, shape)
    working = working_affine(native, mask, SMALL)
    back = from_grid(to_grid(data, native, working, SMALL.shape), working, native, shape)
    np.testing.assert_allclose(back[mask], data[mask], atol=0.04)


def test_same_grid_is_the_identity(rng: np.random.Generator) -> None:
    data, affine = rng.random((7, 8, 9), np.float32), centred(np.diag([2.0, -1.0, 0.5]), (7, 8, 9))
    np.testing.assert_allclose(to_grid(data, affine, affine, data.shape), data, atol=1e-5)
    np.testing.assert_allclose(from_grid(data, affine, affine, data.shape), data, atol=1e-5)


@pytest.mark.parametrize("axes", [np.eye(3), np.diag([-1, -1, 1]), np.eye(3)[[2, 0, 1]]], ids=["RAS", "LPS", "turned"])
def test_a_scan_of_the_grids_spacing_is_cropped_but_not_interpolated(
    axes: np.ndarray, rng: np.random.Generator
) -> None:
    shape = (30, 34, 28)
    native = centred(axes * SMALL.spacing_mm, shape)
    data, mask = rng.uniform(1, 2, shape).astype(np.float32), np.zeros(shape, bool)
    mask[6:21, 7:26, 5:24] = True  # an even and two odd extents: the centre lies between voxels
    working = working_affine(native, mask, SMALL)
    grid = to_grid(data * mask, native, working, SMALL.shape)
    assert np.isclose(grid[grid > 0][:, None], data[mask][None, ::97], atol=1e-5).any(0).all()
    np.testing.assert_allclose(from_grid(grid, working, native, shape)[mask], data[mask], atol=1e-5)


def test_same_oblique_grid_is_the_identity_up_to_the_border(rng: np.random.Generator) -> None:
    data, affine = rng.random((7, 8, 9), np.float32), centred(rotation(10), (7, 8, 9))
    np.testing.assert_allclose(to_grid(data, affine, affine, data.shape), data, atol=1e-5)


def test_beyond_the_scan_is_zero_and_beyond_the_grid_its_nearest_voxel() -> None:
    ones, shifted = np.ones((6, 6, 6), np.float32), np.eye(4)
    shifted[0, 3] = 3
    there = to_grid(ones, np.eye(4), shifted, (6, 6, 6))
    assert there[:3].all()
    assert not there[3:].any()
    assert from_grid(ones, np.eye(4), shifted, (6, 6, 6)).all()


def test_coarser_grid_is_antialiased(rng: np.random.Generator) -> None:
    noise = rng.standard_normal((48, 48, 48)).astype(np.float32)
    coarse = to_grid(noise, np.eye(4), np.diag([4.0, 4, 4, 1]), (12, 12, 12))
    assert coarse.std() < 0.25  # plain linear sampling at the voxels would keep 1


def test_working_grid_is_ras_and_centred_on_the_brain() -> None:
    prepared, *_ = prepared_scene(rotation(25), (64, 64, 64))
    np.testing.assert_array_equal(prepared.affine[:3, :3], 2 * np.eye(3))
    middle = np.argwhere(prepared.mask)
    np.testing.assert_allclose((middle.min(0) + middle.max(0)) / 2, (np.array(SMALL.shape) - 1) / 2, atol=1.5)


def test_upper_percentile_is_one_and_outside_zero(anatomy: Anatomy, clean: np.ndarray) -> None:
    prepared = prepare_volume(
        Volume(clean, anatomy.affine), anatomy.brain, GRID, PrepareConfig(n4=True, n4_iterations=(3,))
    )
    assert np.percentile(prepared.image[prepared.mask], 99.5) == pytest.approx(1, abs=1e-4)
    assert not prepared.image[~prepared.mask].any()
    assert 0 <= prepared.image.min() <= prepared.image.max() <= 2
    assert prepared.quantiles.shape == (257,)
    assert (np.diff(prepared.quantiles) >= 0).all()


@pytest.mark.parametrize("settings", [PLAIN, PrepareConfig(n4_iterations=(5,))], ids=["plain", "n4"])
@pytest.mark.parametrize("factor", [1e-3, 10.0, 1e5])
def test_unit_of_the_scan_does_not_matter(
    anatomy: Anatomy, clean: np.ndarray, settings: PrepareConfig, factor: float
) -> None:
    once, scaled = (
        prepare_volume(Volume((clean * by).astype(np.float32), anatomy.affine), anatomy.brain, GRID, settings)
        for by in (1.0, factor)
    )
    np.testing.assert_allclose(scaled.image, once.image, atol=1e-4)
    assert scaled.scaling.high == pytest.approx(factor * once.scaling.high, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PLAIN, PrepareConfig(n4_iterations=(5,))], ids=["plain", "n4"])
@pytest.mark.parametrize("floor", [-300.0, -5.0])
def test_the_zero_of_the_scan_has_no_effect(
    anatomy: Anatomy, clean: np.ndarray, settings: PrepareConfig, floor: float, rng: np.random.Generator
) -> None:
    """A field multiplies the signal above the floor, and the brain is searched there."""
    head = np.abs(500 * clean + rng.normal(0, 10, clean.shape))
    once, shifted = (
        prepare_volume(Volume((head + by).astype(np.float32), anatomy.affine), None, GRID, settings)
        for by in (0.0, floor)
    )
    assert not once.stripped
    assert (shifted.brain != once.brain).sum() < 0.02 * once.brain.sum()  # registration depends on every digit
    both = shifted.mask & once.mask
    np.testing.assert_allclose(shifted.image[both], once.image[both], atol=2e-3)
    assert shifted.scaling.low == pytest.approx(floor, abs=0.1)


def test_padding_far_below_zero_is_no_signal(anatomy: Anatomy, clean: np.ndarray, rng: np.random.Generator) -> None:
    head = np.abs(500 * clean + rng.normal(0, 10, clean.shape)).astype(np.float32)
    padded = head.copy()
    padded[:2] = -1024
    once, again = (prepare_volume(Volume(data, anatomy.affine), anatomy.brain, GRID, PLAIN) for data in (head, padded))
    assert again.scaling.low == pytest.approx(0, abs=0.1)
    both = once.mask & (to_grid((padded >= 0) * 1.0, anatomy.affine, once.affine, GRID.shape) > 0.99)
    np.testing.assert_allclose(again.image[both], once.image[both], atol=2e-3)


@pytest.mark.parametrize("empty", [0.0, -5.0], ids=["mean", "darkest"])
def test_standard_scores_of_a_stripped_scan_are_shown_above_their_darkest(
    anatomy: Anatomy, clean: np.ndarray, empty: float
) -> None:
    brain = anatomy.brain
    scores = (clean - clean[brain].mean()) / clean[brain].std()
    above = np.maximum(clean - np.percentile(clean[brain], 0.1), 1e-4)
    plain, scored = (
        prepare_volume(Volume(np.where(brain, data, ground).astype(np.float32), anatomy.affine), None, GRID, PLAIN)
        for data, ground in ((above, 0.0), (scores, empty))
    )
    assert scored.stripped
    assert (scored.brain != plain.brain).sum() < 0.002 * brain.sum()
    both = plain.mask & scored.mask
    np.testing.assert_allclose(scored.image[both], plain.image[both], atol=0.01)


def test_the_image_keeps_the_scan_and_the_scaling_undoes_it(anatomy: Anatomy, clean: np.ndarray) -> None:
    prepared = prepare_volume(Volume(500 * clean, anatomy.affine), anatomy.brain, GRID, PLAIN)
    expected = to_grid(500 * clean, anatomy.affine, prepared.affine, GRID.shape)
    inside = prepared.mask
    np.testing.assert_allclose(prepared.scaling.undo(prepared.image[inside]), expected[inside], atol=0.01)


def test_mask_is_estimated_where_none_is_given(anatomy: Anatomy, clean: np.ndarray) -> None:
    scan = Volume(clean * anatomy.brain, anatomy.affine)
    given, estimated = (prepare_volume(scan, mask, GRID, PLAIN) for mask in (anatomy.brain, None))
    assert (given.steps[0], estimated.steps[0]) == ("mask: given", "mask: estimated")
    assert (given.mask != estimated.mask).mean() < 0.01


def test_steps_tell_what_was_done(anatomy: Anatomy, clean: np.ndarray) -> None:
    scan = Volume(clean, anatomy.affine)
    with_n4 = prepare_volume(scan, anatomy.brain, GRID, PrepareConfig(n4_iterations=(2,))).steps
    without = prepare_volume(scan, anatomy.brain, GRID, PLAIN).steps
    assert any("N4 (2,)" in step for step in with_n4)
    assert not any("N4" in step for step in without)


def tilted(anatomy: Anatomy, clean: np.ndarray, degrees: float) -> Volume:
    """The scan of a head that is tilted forward by this angle."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    return Volume(clean, turn @ anatomy.affine)


@pytest.mark.slow
def test_a_tilted_head_is_upright_on_the_working_grid(anatomy: Anatomy, clean: np.ndarray) -> None:
    upright = prepare_volume(Volume(clean, anatomy.affine), anatomy.brain, GRID, PLAIN)
    nodding = tilted(anatomy, clean, 25)
    found = prepare_volume(nodding, anatomy.brain, GRID, PLAIN)
    off = nodding.affine[:3, :3] @ np.linalg.inv(anatomy.affine[:3, :3])
    assert np.degrees(Rotation.from_matrix((found.affine[:3, :3] / GRID.spacing_mm).T @ off).magnitude()) < 4
    assert 2 * (found.mask & upright.mask).sum() > 0.93 * (found.mask.sum() + upright.mask.sum())
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), GRID.spacing_mm)
    assert found.mask.sum() == pytest.approx(upright.mask.sum(), rel=0.03)  # a brain keeps its size
    assert "tilted by 2" in found.steps[3]
    assert "template axes" in found.steps[5]


def test_an_upright_head_keeps_its_voxels(anatomy: Anatomy, clean: np.ndarray) -> None:
    for degrees, settings in ((0, PLAIN), (25, PrepareConfig(n4=False, register=False))):
        found = prepare_volume(tilted(anatomy, clean, degrees), anatomy.brain, GRID, settings)
        np.testing.assert_array_equal(found.affine[:3, :3], GRID.spacing_mm * np.eye(3))
    assert found.registration is None
    assert found.steps[3] == "registration: not asked for"


def test_steps_that_are_not_needed_are_skipped_and_recorded(anatomy: Anatomy, clean: np.ndarray) -> None:
    found = prepare_volume(Volume(clean * anatomy.brain, anatomy.affine), None, GRID, PLAIN)
    assert found.stripped
    assert found.registration is not None
    assert found.registration.method == "given space"
    assert found.steps[1] == "neck: skipped, the mask leaves it out"
    assert found.steps[2] == "skull: skipped, already removed"
    assert found.steps[3].startswith("registration: skipped, already in the template's space")


def test_mask_of_another_shape_is_refused(anatomy: Anatomy, clean: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"mask of shape \(2, 2, 2\)"):
        prepare_volume(Volume(clean, anatomy.affine), np.ones((2, 2, 2), bool), GRID, PLAIN)


def test_a_mask_on_another_grid_is_resampled_and_recorded(anatomy: Anatomy, clean: np.ndarray) -> None:
    """A finer grid whose first voxel lies elsewhere."""
    fine = anatomy.affine @ np.diag([0.5, 0.5, 0.5, 1])
    mask = np.kron(anatomy.brain, np.ones((2, 2, 2)))
    fine[:3, 3] -= np.diag(fine)[:3] / 2
    plain = replace(PLAIN, register=False)
    found = prepare_volume(Volume(clean, anatomy.affine), Volume(mask, fine), GRID, plain)
    known = prepare_volume(Volume(clean, anatomy.affine), Volume(anatomy.brain, anatomy.affine), GRID, plain)
    assert (found.steps[0], known.steps[0]) == ("mask: given, resampled", "mask: given")
    assert 2 * (found.brain & anatomy.brain).sum() > 0.97 * (found.brain.sum() + anatomy.brain.sum())


def test_empty_mask_is_refused(anatomy: Anatomy, clean: np.ndarray) -> None:
    with pytest.raises(DataError, match="an empty mask"):
        prepare_volume(Volume(clean, anatomy.affine), np.zeros(clean.shape, bool), GRID, PLAIN)


def test_mask_smaller_than_a_working_voxel_is_refused() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[10, 10, 10] = True
    with pytest.raises(DataError, match="without a working voxel"):
        prepare_volume(Volume(np.ones((20, 20, 20), np.float32), np.eye(4)), mask, GridConfig(6.0, (8, 8, 8)), PLAIN)


def test_a_mask_without_contrast_is_refused(anatomy: Anatomy, clean: np.ndarray) -> None:
    with pytest.raises(DataError, match="positive contrast"):
        prepare_volume(Volume(clean, anatomy.affine), clean == 0, GRID, replace(PLAIN, register=False))
