"""Estimated masks: the voxels of a stripped scan that are not background, the brain in any other scan."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.errors import DataError
from mmh_ray.imaging.ground import find_ground
from mmh_ray.imaging.head import dilated, eroded
from mmh_ray.imaging.mask import find_brain, on_grid_of
from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SEQUENCES, SITES, render

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def headed(spacing: float) -> Anatomy:
    """A person with a scalp."""
    return simulate_anatomy(Person(4, scalp=True), spacing)


def test_stripped_scan_keeps_what_is_not_zero(anatomy: Anatomy, clean: np.ndarray) -> None:
    stripped = clean * anatomy.brain
    volume = Volume(stripped, anatomy.affine)
    assert find_ground(volume).stripped
    mask = find_brain(volume).mask
    assert mask[anatomy.brain].mean() > 0.999
    assert not mask[~anatomy.brain].sum() > 0.01 * anatomy.brain.sum()


@pytest.mark.parametrize(("gain", "offset"), [(1.0, -1.0), (1000.0, 1024.0), (1.0, -0.3)])
def test_background_of_a_stripped_scan_need_not_be_zero(
    anatomy: Anatomy, clean: np.ndarray, gain: float, offset: float
) -> None:
    volume = Volume((gain * clean * anatomy.brain + offset).astype(np.float32), anatomy.affine)
    assert find_ground(volume).stripped
    np.testing.assert_array_equal(
        find_brain(volume).mask, find_brain(volume.like(volume.data - np.float32(offset))).mask
    )


@pytest.mark.parametrize("offset", [-0.3, -0.5])
def test_the_dark_rim_of_a_pale_scan_shifted_below_zero_is_brain(
    anatomy: Anatomy, clean: np.ndarray, offset: float
) -> None:
    """All other voxels are far above the background: it is the scan's zero, not fill with an interpolated rim."""
    inner = ndimage.binary_erosion(anatomy.brain)
    scan = np.where(inner, 0.6 + 0.4 * clean, 0.1 * anatomy.brain)
    plain = Volume(scan.astype(np.float32), anatomy.affine)
    shifted = plain.like(plain.data + np.float32(offset))
    assert find_ground(shifted).floor == pytest.approx(offset, abs=0.01)
    np.testing.assert_array_equal(find_brain(shifted).mask, find_brain(plain).mask)


def test_a_value_far_below_a_brain_is_not_its_zero(anatomy: Anatomy, clean: np.ndarray) -> None:
    """Such as -10 around a brain in standard scores."""
    scores = (clean - clean[anatomy.brain].mean()) / clean[anatomy.brain].std()
    volume = Volume(np.where(anatomy.brain, scores, -10).astype(np.float32), anatomy.affine)
    ground = find_ground(volume)
    assert ground.stripped
    assert ground.floor == pytest.approx(np.percentile(scores[anatomy.brain], 0.1), abs=0.1)


def test_a_stripped_scan_of_zero_mean_keeps_its_dark_half(anatomy: Anatomy, clean: np.ndarray) -> None:
    scores = (clean - clean[anatomy.brain].mean()) / clean[anatomy.brain].std()
    volume = Volume((scores * anatomy.brain).astype(np.float32), anatomy.affine)
    assert (volume.data < 0).any()
    assert find_brain(volume).mask[anatomy.brain].mean() > 0.999


def test_a_given_mask_is_resampled_to_the_scan_through_the_affines(anatomy: Anatomy, clean: np.ndarray) -> None:
    scan, brain = Volume(clean, anatomy.affine), anatomy.brain.astype(np.float32)
    same, resampled = on_grid_of(scan, Volume(brain, anatomy.affine))
    assert not resampled
    np.testing.assert_array_equal(same, anatomy.brain)
    mirrored = anatomy.affine @ np.diag([-1.0, 1, 1, 1])
    mirrored[:3, 3] = (anatomy.affine @ [len(brain) - 1, 0, 0, 1])[:3]
    found, resampled = on_grid_of(
        scan, Volume(brain[::-1], mirrored)
    )  # the same shape, and the same place in the world
    assert resampled
    np.testing.assert_array_equal(found, anatomy.brain)
    far = anatomy.affine.copy()
    far[0, 3] += 150
    with pytest.raises(DataError, match=r"of which .* lies in the scan's field of view; expected 50% or more"):
        on_grid_of(scan, Volume(brain, far))


def test_holes_are_filled_and_specks_left_out(ball: np.ndarray) -> None:
    data = ball.astype(np.float32)
    data[8, 10, 7] = 0
    data[0, 0, 0] = 5
    np.testing.assert_array_equal(find_brain(Volume(data, np.eye(4))).mask, ball)


@pytest.mark.parametrize("site", [0, 3], ids=["alder", "doum"])
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_mask_of_a_whole_head_contains_the_brain(
    headed: Anatomy, spacing: float, site: int, sequence: str, rng: np.random.Generator
) -> None:
    scan = render(headed, SITES[site], sequence, rng, spacing)
    volume = Volume(scan, headed.affine)
    assert not find_ground(volume).stripped
    mask = find_brain(volume).mask
    assert mask[headed.brain].mean() >= 0.95
    assert mask.mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("gain", [2.0**-10, 2.0**13])  # exact in floating point
def test_the_unit_of_a_scan_has_no_effect(
    headed: Anatomy, spacing: float, rng: np.random.Generator, gain: float
) -> None:
    scan = render(headed, SITES[1], "T1w", rng, spacing)
    once, scaled = (find_brain(Volume(by * scan, headed.affine)).mask for by in (np.float32(1), np.float32(gain)))
    np.testing.assert_array_equal(once, scaled)


@pytest.mark.slow
def test_a_neck_is_no_part_of_the_brain(headed: Anatomy, spacing: float, rng: np.random.Generator) -> None:
    scan = render(headed, SITES[0], "T1w", rng, spacing)
    below = 20  # voxels of field of view below the head, with a neck as bright as the scalp
    data = np.concatenate([np.zeros((*scan.shape[:2], below), np.float32), scan], axis=2)
    data[12:24, 12:24, : below + 4] = 0.7 * scan.max()
    affine = headed.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -below], [0, 0, 0, 1]])
    found = find_brain(Volume(data, affine))
    assert found.mask.shape == data.shape
    assert found.mask[:, :, below:][headed.brain].mean() > 0.9
    assert not found.mask[:, :, : below - 4].any()


@pytest.mark.parametrize("share", [0.001, 0.5, 0.97])
def test_dilation_and_erosion_by_a_box_equal_those_of_scipy(rng: np.random.Generator, share: float) -> None:
    mask = rng.random((20, 24, 17)) < share
    radius = [2, 1, 3]
    box = np.ones([2 * voxels + 1 for voxels in radius])
    assert (dilated(mask, radius) == ndimage.binary_dilation(mask, box)).all()
    assert (eroded(mask, radius) == ndimage.binary_erosion(mask, box)).all()


def test_an_empty_mask_stays_empty() -> None:
    empty = np.zeros((4, 5, 6), bool)
    assert not dilated(empty, [1, 1, 1]).any()
    assert not eroded(empty, [1, 1, 1]).any()
