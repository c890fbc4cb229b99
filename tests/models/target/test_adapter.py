"""Adapters change nothing until trained and leave the base alone; the site's curve is recovered."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from mmh_ray.config import ModelConfig, TargetConfig, TrainConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.target.adapter import SiteStyle, attach, point_spread, state_of, switch_adapter, with_adapter

pytestmark = pytest.mark.fast


@torch.inference_mode()
def predict(model: GlobalHarmonizer, batch: SlabBatch) -> Tensor:
    """The model's image of a batch from the batch's own noise."""
    return model.predict(batch, *model.draw(batch))


def strong(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights of an adapter with an effect."""
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.3 * torch.randn(value.shape, generator=generator) for key, value in state.items()}


def test_a_new_adapter_changes_nothing(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    before = predict(model, batch)
    attach(model, "one", 2)
    with with_adapter(model, "one"):
        assert torch.equal(predict(model, batch), before)


def test_adapters_leave_the_base_and_each_other_alone(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    before = predict(model, batch)
    attach(model, "blank", 2)
    states = [strong(state_of(model, "blank"), seed) for seed in (1, 2)]
    for name, state in zip(("one", "two"), states, strict=True):
        attach(model, name, 2, state)
    assert torch.equal(predict(model, batch), before)
    with with_adapter(model, "one"):
        first = predict(model, batch)
    with with_adapter(model, "two"):
        second = predict(model, batch)
    assert torch.equal(predict(model, batch), before)
    assert not torch.allclose(first, before, atol=1e-3)
    assert not torch.allclose(first, second, atol=1e-3)
    with with_adapter(model, "one"):
        assert torch.equal(predict(model, batch), first)


def test_the_state_travels(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    other = copy.deepcopy(model)
    attach(model, "here", 3)
    state = strong(state_of(model, "here"), 4)
    attach(model, "filled", 3, state)
    attach(other, "there", 3, state)
    assert state_of(other, "there").keys() == state.keys()
    with with_adapter(model, "filled"), with_adapter(other, "there"):
        assert torch.equal(predict(model, batch), predict(other, batch))


def test_only_the_active_adapter_is_trainable(model: GlobalHarmonizer) -> None:
    attach(model, "one", 2)
    assert not [name for name, value in model.named_parameters() if value.requires_grad]
    switch_adapter(model, "one")
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_weights_of_another_model_are_refused(model: GlobalHarmonizer) -> None:
    attach(model, "one", 2)
    with pytest.raises(ModelError, match="Train it on this model"):
        attach(model, "two", 3, state_of(model, "one"))


def test_an_adapter_is_a_twentieth_of_the_base() -> None:
    base = GlobalHarmonizer(ModelConfig(), TrainConfig(), torch.linspace(0, 1, 257).repeat(2, 2, 1))
    size = sum(value.numel() for value in base.parameters())
    attach(base, "one", TargetConfig().rank)
    assert sum(value.numel() for value in state_of(base, "one").values()) <= 0.05 * size


def site(power: float, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unified volume, the same at a site, and the mask."""
    rng = np.random.default_rng(0)
    unified = np.linspace(0.05, 1, 20**3).reshape(20, 20, 20).astype(np.float32)
    image = unified**power + rng.normal(0, noise, unified.shape).astype(np.float32)
    return unified, image, np.ones(unified.shape, bool)


@pytest.mark.parametrize("power", [0.6, 1.8])
def test_the_curve_of_a_site_is_found_through_its_noise(power: float) -> None:
    unified, image, mask = site(power, 0.03)
    style = SiteStyle.fit([unified], [image], [mask])
    levels = torch.linspace(0.1, 0.95, 20)
    assert torch.allclose(style.apply(levels), levels**power, atol=0.015)
    assert style.noise == pytest.approx(0.03, rel=0.5)


def test_tissues_that_differ_in_the_unified_image_stay_different() -> None:
    unified, image, mask = site(1, 0)
    style = SiteStyle.fit([unified], [1 - image], [mask])  # a falling curve cannot be
    assert (style.apply(torch.linspace(-0.2, 1.4, 50)).diff() > 0).all()


def test_the_curve_is_differentiable() -> None:
    unified, image, mask = site(2, 0)
    levels = torch.linspace(0.2, 0.9, 5, requires_grad=True)
    SiteStyle.fit([unified], [image], [mask]).apply(levels).sum().backward()
    assert levels.grad is not None
    assert torch.allclose(levels.grad, 2 * levels.detach(), atol=0.1)


def test_the_point_spread_stays_inside_the_mask(brain: np.ndarray, mask: np.ndarray) -> None:
    assert np.allclose(point_spread(mask.astype(np.float32), mask, 1.0), mask, atol=1e-5)
    soft = point_spread(brain, mask, 1.0)
    assert soft[mask].std() < brain[mask].std()
    assert not soft[~mask].any()
    assert np.array_equal(point_spread(brain, mask, 0), brain)
    assert np.allclose(point_spread(np.stack([brain, brain]), mask, 1.0)[1], soft)


@pytest.mark.parametrize(("noise", "expected"), [(0.05, 0.01), (0.004, 0.004)])
def test_no_more_noise_is_left_than_the_site_has_or_the_curve_makes(noise: float, expected: float) -> None:
    knots = np.linspace(0, 1, 64)
    style = SiteStyle(knots, 0.2 + 0.5 * knots, np.linspace(0.2, 0.7, 257), noise)
    assert style.noise_left(0.02) == pytest.approx(expected)


def test_noise_of_the_scans_does_not_become_contrast() -> None:
    rng = np.random.default_rng(1)
    unified = np.where(np.arange(24**3).reshape(24, 24, 24) // (12 * 24 * 24) == 0, 0.4, 0.8).astype(np.float32)
    mask = np.ones(unified.shape, bool)
    scan = (0.3 + 0.5 * unified + rng.normal(0, 0.06, unified.shape)).astype(np.float32)
    style = SiteStyle.fit([unified], [scan], [mask])
    assert style.apply(torch.tensor([0.4, 0.8])).tolist() == pytest.approx([0.5, 0.7], abs=0.015)
