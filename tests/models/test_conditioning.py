"""The condition: blind to linear style, not blind to any edge, far-sighted in flat regions."""

from __future__ import annotations

from math import tanh

import pytest
import torch
from torch import Tensor

from mmh_ray.models.conditioning import channels, condition_slices, difference_scales

pytestmark = pytest.mark.fast

SHAPE = (10, 12, 14)


@pytest.fixture
def volume() -> Tensor:
    """Random unit intensities."""
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def everywhere() -> Tensor:
    """A mask that holds every voxel."""
    return torch.ones(SHAPE, dtype=torch.bool)


def condition(volume: Tensor, mask: Tensor, distances: tuple[int, ...]) -> Tensor:
    """Condition of every sagittal slice, ``(X, 3 D, Y, Z)``."""
    return condition_slices(volume, range(len(volume)), difference_scales(volume, mask, distances), distances)


@pytest.mark.parametrize(("gain", "shift"), [(1000.0, 0.0), (0.01, 0.0), (1.0, -7.0), (3.0, 2.0)])
def test_linear_style_leaves_no_trace(volume: Tensor, everywhere: Tensor, gain: float, shift: float) -> None:
    styled = condition(gain * volume + shift, everywhere, (1, 3))
    torch.testing.assert_close(styled, condition(volume, everywhere, (1, 3)), atol=1e-3, rtol=0)


def test_inversion_of_contrast_is_seen(volume: Tensor, everywhere: Tensor) -> None:
    torch.testing.assert_close(condition(-volume, everywhere, (1,)), -condition(volume, everywhere, (1,)))


def test_condition_is_bounded_and_finite_for_outliers(volume: Tensor, everywhere: Tensor) -> None:
    volume[5, 5, 5] = 1e6
    found = condition(volume, everywhere, (1, 2, 4))
    assert found.shape == (10, channels((1, 2, 4)), 12, 14)
    assert torch.isfinite(found).all()
    assert -0.5 < float(found.min()) < float(found.max()) < 0.5


def test_constant_volume_gives_zero(everywhere: Tensor) -> None:
    assert not condition(torch.full(SHAPE, 0.7), everywhere, (1, 2)).any()


def test_forward_difference_has_its_known_value(everywhere: Tensor) -> None:
    volume = torch.zeros(SHAPE)
    volume[4, 5, 6] = 1
    found = condition_slices(volume, [3, 4], torch.tensor([2.0]), (1,))
    up = 0.5 * tanh(1 / 2)
    assert found[0, 0, 5, 6] == pytest.approx(up)  # along the normal
    assert found[1, 1, 4, 6] == pytest.approx(up)  # down
    assert found[1, 2, 5, 5] == pytest.approx(up)  # right
    torch.testing.assert_close(found[1, :, 5, 6], torch.full((3,), -up))
    assert torch.count_nonzero(found) == 6


def test_differences_are_clipped_at_five_scales() -> None:
    volume = torch.zeros(3, 3, 3)
    volume[1, 1, 1] = 50
    found = condition_slices(volume, [1], torch.tensor([1.0]), (1,))
    assert float(found.min()) == pytest.approx(0.5 * tanh(-5))


def test_scale_is_the_quantile_of_a_ramp(everywhere: Tensor) -> None:
    ramp = 0.25 * torch.arange(10.0)[:, None, None].expand(SHAPE)
    scales = difference_scales(ramp, everywhere, (1, 2))  # 0.25 and 0.5 along x in more than 2 % of all differences
    torch.testing.assert_close(scales, torch.tensor([0.25, 0.5]))


def test_scale_looks_only_at_the_brain(volume: Tensor) -> None:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[2:5, 2:5, 2:5] = True
    loud = volume.clone()
    loud[7:] *= 100
    torch.testing.assert_close(difference_scales(loud, mask, (1, 2)), difference_scales(volume, mask, (1, 2)))


def test_empty_mask_has_a_finite_scale(volume: Tensor, everywhere: Tensor) -> None:
    assert difference_scales(volume, ~everywhere, (1, 2)).tolist() == [1, 1]


def test_edge_normal_to_the_diagonal_does_not_vanish(everywhere: Tensor) -> None:
    x, y, z = torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij")
    for signs in ((1, 1, 1), (1, -1, 0), (1, 1, -2)):  # the signed mean of the components is blind to the last two
        plane = (signs[0] * x + signs[1] * y + signs[2] * z).float()
        found = condition((plane > plane.median()).float(), everywhere, (1,))
        assert found.abs().amax(dim=1)[2:-2, 2:-2, 2:-2].max() > 0.3


def test_flat_region_sees_a_far_edge_at_larger_distances_only(everywhere: Tensor) -> None:
    volume = torch.zeros(SHAPE)
    volume[8:] = 1
    found = condition(volume, everywhere, (1, 4))
    assert not found[5, :3].any()  # three voxels before the edge, one-voxel differences are zero
    assert float(found[5, 3].min()) > 0.3


def test_differences_past_the_border_stop_at_the_last_element(volume: Tensor, everywhere: Tensor) -> None:
    found = condition(volume, everywhere, (1,))
    assert not found[-1, 0].any()
    assert not found[:, 1, -1].any()
    assert not found[:, 2, :, -1].any()
    assert torch.count_nonzero(found[:-1, 0]) == found[:-1, 0].numel()


def test_planes_agree_on_a_voxel(volume: Tensor, everywhere: Tensor) -> None:
    """The same three differences, in another order, whichever plane a voxel is seen in."""
    scales = difference_scales(volume, everywhere, (1,))
    sagittal = condition_slices(volume, [3], scales, (1,))[0, :, 4, 5]
    axial = condition_slices(volume.movedim(2, 0), [5], scales, (1,))[0, :, 3, 4]
    torch.testing.assert_close(axial, sagittal[[2, 0, 1]])
