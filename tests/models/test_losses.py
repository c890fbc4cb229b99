"""Losses: values by hand, distances of known distributions."""

from __future__ import annotations

import pytest
import torch

from mmh_ray.models.losses import (
    BINS,
    gradient_mse,
    group_statistics,
    masked_mse,
    multiscale_gradient_l1,
    soft_cumulative,
    style_displacement,
    style_distance,
    twin_mse,
)

pytestmark = pytest.mark.fast


def uniform(low: float, high: float) -> torch.Tensor:
    """Quantile function of a uniform distribution."""
    return torch.linspace(low, high, 257)


ONE = torch.zeros(1, dtype=torch.long)


def slabs(*rows: list[float]) -> torch.Tensor:
    """A slab of one slice and one line per row, ``(B, 1, 1, W)``."""
    return torch.tensor(rows)[:, None, None]


def test_masked_mse_by_hand() -> None:
    predicted, target = slabs([1.0, 2, 3, 4]), slabs([0.0, 2, 1, 1])
    mask = slabs([1.0, 1, 0, 0])  # squared errors 1, 0, 4, 9 at weights 1, 1, 0.5, 0.5
    assert float(masked_mse(predicted, target, mask, ONE, outside=0.5)) == pytest.approx((1 + 0 + 2 + 4.5) / 3)
    assert float(masked_mse(predicted, target, mask, ONE, outside=0)) == pytest.approx(0.5)


def test_groups_count_the_same_whatever_the_size_of_their_brains() -> None:
    predicted = slabs([1.0, 1, 1, 1], [3.0, 0, 0, 0], [0.0, 0, 0, 0])
    mask, group = slabs([1.0, 1, 1, 1], [1.0, 0, 0, 0], [1.0, 0, 0, 0]), torch.tensor([0, 1, 1])
    loss = masked_mse(predicted, torch.zeros_like(predicted), mask, group, outside=0)
    assert float(loss) == pytest.approx((1 + 9 / 2) / 2)


def test_masked_mse_without_brain_is_finite() -> None:
    blank = torch.zeros(1, 1, 4, 4)
    assert float(masked_mse(blank + 1, blank, blank, ONE)) == pytest.approx(1)


def test_twin_mse_by_hand() -> None:
    """Groups 0 and 1 are twins that differ by 2 in the brain and by 9 outside; group 2 has no twin."""
    predicted = torch.tensor([1.0, 3.0, 5.0])[:, None, None, None].expand(3, 1, 2, 2).clone()
    mask = torch.ones(3, 1, 2, 2)
    mask[:, :, 0, 0] = 0
    predicted[1, 0, 0, 0] = 10
    group = torch.arange(3)
    assert float(twin_mse(predicted, mask, group, torch.tensor([4, 4, 5]))) == pytest.approx(4)
    assert float(twin_mse(predicted, mask, group, torch.tensor([3, 4, 5]))) == 0
    assert float(twin_mse(predicted, mask, group, torch.tensor([4, 4, 4]))) == pytest.approx(4)  # both pairs, the mean
    assert float(twin_mse(predicted, torch.zeros_like(mask), group, torch.tensor([4, 4, 5]))) == 0


def test_gradient_mse_is_zero_for_a_constant_error() -> None:
    image, mask = torch.rand(2, 3, 6, 5), torch.ones(2, 3, 6, 5)
    assert float(gradient_mse(image + 0.3, image, mask, torch.tensor([0, 1]))) == pytest.approx(0, abs=1e-10)


def test_gradient_mse_by_hand() -> None:
    error = torch.tensor([[[[0.0, 1], [3, 3]]]])  # down: 3, 2; right: 1, 0
    assert float(gradient_mse(error, torch.zeros_like(error), torch.ones_like(error), ONE)) == pytest.approx(
        (9 + 4 + 1 + 0) / 4
    )


def test_gradient_mse_sees_no_background() -> None:
    predicted, mask = torch.rand(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    assert float(gradient_mse(predicted, torch.zeros_like(predicted), mask, ONE)) == 0


@pytest.mark.parametrize("shift", [0.1, 0.25, -0.2])
def test_distance_of_two_shifted_distributions_is_the_shift(shift: float) -> None:
    first, second = (soft_cumulative(uniform(0.3 + by, 0.7 + by))[None] for by in (0, shift))
    same = torch.zeros(1, 2)
    wasserstein = style_distance(first, same, second, same)
    assert wasserstein.shape == (1,)
    assert float(wasserstein) == pytest.approx(abs(shift), rel=0.03)


def test_distance_adds_the_squared_differences_of_moments() -> None:
    cumulative = soft_cumulative(uniform(0, 1))[None]
    distance = style_distance(cumulative, torch.tensor([[0.6, 0.3]]), cumulative, torch.tensor([[0.5, 0.1]]))
    assert float(distance) == pytest.approx(0.01 + 0.04)


def test_cumulative_is_a_smoothed_step() -> None:
    cumulative = soft_cumulative(torch.full((257,), 0.5))
    edges = torch.linspace(0, 1.25, BINS)
    assert cumulative.shape == (BINS,)
    assert (cumulative.diff() >= 0).all()
    assert (cumulative[edges < 0.35] < 0.01).all()
    assert (cumulative[edges > 0.65] > 0.99).all()


def test_group_statistics_equal_those_of_the_groups_voxels() -> None:
    image, mask, group = torch.rand(4, 9, 9), (torch.rand(4, 9, 9) > 0.4).float(), torch.tensor([1, 0, 1, 0])
    cumulative, moments = group_statistics(image, mask, group)
    assert cumulative.shape == (2, BINS)
    for index in range(2):
        values = image[group == index][mask[group == index] > 0]
        torch.testing.assert_close(
            moments[index], torch.stack([values.mean(), values.std(unbiased=False)]), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(cumulative[index], soft_cumulative(values), atol=1e-5, rtol=0)


def test_group_of_the_domains_own_distribution_is_at_distance_zero() -> None:
    values = uniform(0.1, 0.9)
    cumulative, moments = group_statistics(values.view(1, 1, -1), torch.ones(1, 1, 257), torch.zeros(1).long())
    domain = torch.stack([values.mean(), values.std(unbiased=False)])[None]
    assert float(style_distance(cumulative, moments, soft_cumulative(values)[None], domain)) < 1e-6


def test_statistics_lead_a_group_towards_its_domain() -> None:
    """Descending the distance moves the mean to that of the domain."""
    image = torch.full((1, 8, 8), 0.3).add(0.1 * torch.rand(1, 8, 8)).requires_grad_()
    domain_cumulative = soft_cumulative(uniform(0.6, 0.8))[None]
    cumulative, moments = group_statistics(image, torch.ones(1, 8, 8), torch.zeros(1).long())
    style_distance(cumulative, moments, domain_cumulative, torch.tensor([[0.7, 0.06]])).sum().backward()
    assert torch.isfinite(image.grad).all()
    assert (image.grad < 0).all()


def test_group_without_brain_is_finite() -> None:
    image = torch.rand(2, 4, 4).requires_grad_()
    mask = torch.tensor([1.0, 0])[:, None, None].expand(2, 4, 4)
    cumulative, moments = group_statistics(image, mask, torch.tensor([0, 1]))
    (cumulative.sum() + moments.sum()).backward()
    assert torch.isfinite(cumulative).all()
    assert torch.isfinite(moments).all()
    assert torch.isfinite(image.grad).all()


def test_multiscale_gradients_by_hand() -> None:
    ramp = torch.arange(8.0).expand(
        1, 1, 8, 8
    )  # rises by 1 a column, by s between squares of s columns, not at all down
    found = multiscale_gradient_l1(ramp, torch.zeros_like(ramp), torch.ones_like(ramp), scales=(1, 2, 4))
    assert float(found) == pytest.approx((1 + 2 + 4) / 6)
    assert float(multiscale_gradient_l1(ramp + 5, ramp, torch.ones_like(ramp))) == pytest.approx(0)


def test_multiscale_gradients_end_at_the_mask() -> None:
    image, mask = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    image[..., 4:] = 100  # outside
    assert float(multiscale_gradient_l1(image, torch.zeros_like(image), mask)) == 0


def test_style_displacement_by_hand() -> None:
    wanted = torch.tensor([2.0, 0.0])
    found = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])  # the same; across; the other way, half as far
    assert float(style_displacement(found[:1], wanted)) == pytest.approx(0, abs=1e-6)
    assert float(style_displacement(found, wanted)) == pytest.approx((0 + 1 + (2 + 1.5 / 2)) / 3)
