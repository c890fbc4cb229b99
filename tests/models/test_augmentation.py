"""Random styles: monotone, reproducible, inside the mask; none at zero strength."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mmh_ray.config import RestyleConfig
from mmh_ray.models.augmentation import gaussian_blur, random_curve, restyle

pytestmark = pytest.mark.fast

NONE = RestyleConfig(**{field.name: 0.0 for field in fields(RestyleConfig)})


@pytest.fixture
def inside(mask: np.ndarray) -> Tensor:
    """The mask as a tensor."""
    return torch.from_numpy(mask)


@pytest.fixture
def image(brain: np.ndarray) -> Tensor:
    """The volume as a tensor."""
    return torch.from_numpy(brain)


def draw(seed: int) -> torch.Generator:
    """A generator in a known state."""
    return torch.Generator().manual_seed(seed)


def test_zero_strength_is_the_identity(image: Tensor, inside: Tensor) -> None:
    torch.testing.assert_close(restyle(image, inside, 3.0, NONE, draw(0)), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "strength"),
    [("curve", 0.5), ("gamma", 0.4), ("bias", 0.3), ("blur_mm", 30.0), ("noise", 0.1), ("coarsen", 1.0)],
)
def test_every_setting_changes_the_style(image: Tensor, inside: Tensor, name: str, strength: float) -> None:
    styled = restyle(image, inside, 3.0, replace(NONE, **{name: strength}), draw(0))
    assert (styled - image).abs().mean() > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_curve_is_increasing_through_zero_and_one(seed: int) -> None:
    ramp = torch.linspace(0, 1.5, 301)
    curve = random_curve(ramp, RestyleConfig(), draw(seed))
    assert (curve.diff() > 0).all()
    assert float(curve[0]) == pytest.approx(0, abs=1e-6)
    assert float(curve[200]) == pytest.approx(1, abs=1e-5)


def test_gamma_alone_is_a_power_at_the_knots() -> None:
    knots = torch.linspace(0, 1, 7)
    gamma = torch.exp(0.4 * torch.randn((), generator=draw(3)))
    curve = random_curve(knots, replace(NONE, gamma=0.4), draw(3))
    torch.testing.assert_close(curve, knots**gamma)


def test_same_generator_state_same_style_another_state_another(image: Tensor, inside: Tensor) -> None:
    first, again, other = (restyle(image, inside, 3.0, RestyleConfig(), draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_random_state_is_neither_used_nor_moved(image: Tensor, inside: Tensor) -> None:
    before = torch.get_rng_state()
    first = restyle(image, inside, 3.0, RestyleConfig(coarsen=1), draw(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(restyle(image, inside, 3.0, RestyleConfig(coarsen=1), draw(1)), first)


@pytest.mark.parametrize("seed", range(8))
def test_styles_are_finite_not_negative_and_zero_outside(image: Tensor, inside: Tensor, seed: int) -> None:
    strong = RestyleConfig(curve=1.5, gamma=1.0, bias=0.5, blur_mm=10, noise=0.3, coarsen=1)
    styled = restyle(1.8 * image, inside, 3.0, strong, draw(seed))
    assert styled.shape == image.shape
    assert torch.isfinite(styled).all()
    assert styled.min() >= 0
    assert not styled[~inside].any()
    assert styled[inside].std() > 0


def test_bias_field_is_smooth_and_multiplicative(inside: Tensor) -> None:
    flat = torch.full(inside.shape, 0.5)
    styled = restyle(flat, torch.ones_like(inside), 3.0, replace(NONE, bias=0.3), draw(4))
    logarithm = torch.log(styled / 0.5)
    assert logarithm.mean().abs() < 1e-4
    assert 0.01 < logarithm.std() < 0.31
    assert logarithm.diff(dim=1).abs().max() < logarithm.std()


def test_blur_keeps_constants_and_sums_and_has_the_asked_width() -> None:
    assert torch.allclose(gaussian_blur(torch.full((5, 6, 7), 0.3), 1.5), torch.tensor(0.3))
    point = torch.zeros(31, 31, 31)
    point[15, 15, 15] = 1
    blurred = gaussian_blur(point, 2.0)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-4)
    offsets = torch.arange(31.0) - 15
    for axis in range(3):
        profile = blurred.movedim(axis, 0).sum((1, 2))
        assert float((profile * offsets**2).sum()) == pytest.approx(4, rel=0.05)
