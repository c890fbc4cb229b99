"""The target fine-tuner: what it trains, what it keeps, and that it learns a style from three images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from mmh_ray.config import HarmonizeConfig, ModelConfig, StyleConfig, TargetConfig
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.slab_groups import Conditioner
from mmh_ray.models.style.embedded import EmbeddedBackbone
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder
from mmh_ray.models.target.adapter import SiteStyle
from mmh_ray.models.target.fine_tuner import TargetBatch, TargetFineTuner, UnifiedVolume, batch_of, tune

pytestmark = pytest.mark.fast

CONFIG = TargetConfig(steps=40, slabs_per_plane=1, validate_every=10, learning_rate=1e-2)


@pytest.fixture
def encoder() -> TriPlanarStyleEncoder:
    """An untrained encoder, which is enough to carry gradients."""
    torch.manual_seed(3)
    return TriPlanarStyleEncoder(EmbeddedBackbone(), StyleConfig(slices=2), 3.0)


def volume(
    unified: np.ndarray, mask: np.ndarray, domain: np.ndarray, model: ModelConfig, power: float
) -> UnifiedVolume:
    """A volume whose image at the site is a power of the unified one."""
    image = (unified**power).astype(np.float32)
    return UnifiedVolume(image, unified, image, mask, Conditioner(unified, mask, domain, model))


@pytest.fixture
def volumes(brain: np.ndarray, mask: np.ndarray, uniform: np.ndarray, tiny: ModelConfig) -> list[UnifiedVolume]:
    """Three smooth volumes of the site, then one of a source site."""
    brain = (ndimage.gaussian_filter(brain, 1.5) * mask).astype(np.float32)
    turned = [brain, brain[::-1].copy(), brain[:, ::-1].copy()]
    return [volume(one, mask, uniform, tiny, 1.7) for one in turned] + [volume(brain, mask, uniform, tiny, 1)]


def batches(volumes: list[UnifiedVolume], key: int, own: tuple[int, int] = (0, 1)) -> tuple[TargetBatch, TargetBatch]:
    """Two groups of the site, of its volumes ``own``, and one of the source's."""
    site = [volumes[own[(key + index) % 2]].group(0, CONFIG, key + index) for index in range(2)]
    return batch_of(site), batch_of([volumes[3].group(0, CONFIG, key)])


@pytest.fixture
def tuner(model: GlobalHarmonizer, volumes: list[UnifiedVolume], encoder: TriPlanarStyleEncoder) -> TargetFineTuner:
    """A tuner with the identity curve, on a model that returns the matched slab."""
    for value in model.denoiser.unet.conv_out.parameters():
        torch.nn.init.zeros_(value)
    knots = np.linspace(0, 1, 65)
    style = SiteStyle(knots, knots, np.quantile(volumes[0].image[volumes[0].mask], np.linspace(0, 1, 257)), 0.02)
    return TargetFineTuner(model, style, encoder, CONFIG, HarmonizeConfig())


def test_gradients_reach_the_whole_adapter_and_nothing_else(
    tuner: TargetFineTuner, volumes: list[UnifiedVolume]
) -> None:
    for name, value in tuner.named_parameters():
        if "lora_B" in name:  # which starts at zero and would hide the gradient of A
            torch.nn.init.normal_(value, std=0.1)
    tuner(*batches(volumes, 0))["loss"].backward()
    for name, value in tuner.named_parameters():
        assert (value.grad is not None and bool(value.grad.abs().sum() > 0)) == ("lora_" in name), name


@pytest.mark.parametrize("last", [1, 3])
def test_gradients_flow_through_the_last_steps_alone(
    tuner: TargetFineTuner, volumes: list[UnifiedVolume], last: int
) -> None:
    tuner.settings, tuner.config = HarmonizeConfig(steps=4), replace(CONFIG, last_steps=last)
    recorded: list[bool] = []
    tuner.model.denoiser.register_forward_pre_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    tuner(*batches(volumes, 0))["loss"].backward()
    before, after = [False] * 4, [False] * (4 - last) + [True] * last
    assert recorded == 2 * (before + after)  # of the site's groups, then of the source's


@pytest.mark.parametrize("part", ["reconstruction", "gradient", "statistics", "displacement"])
def test_every_loss_teaches_the_adapter(tuner: TargetFineTuner, volumes: list[UnifiedVolume], part: str) -> None:
    tuner(*batches(volumes, 0))[part].backward()
    found = [value.grad for name, value in tuner.named_parameters() if "lora_B" in name]
    assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in found)


def test_training_can_stop_early_at_the_default_settings() -> None:
    config = TargetConfig()
    assert 2 * config.patience * config.validate_every < config.steps


def test_every_loss_counts_and_equal_keys_give_equal_losses(
    tuner: TargetFineTuner, volumes: list[UnifiedVolume]
) -> None:
    first, again = (tuner(*batches(volumes, 5)) for _ in range(2))
    assert {name: value.item() for name, value in first.items()} == {
        name: value.item() for name, value in again.items()
    }
    assert set(first) == {"loss", "reconstruction", "gradient", "statistics", "displacement"}
    assert all(value.item() > 0 for value in first.values())


@pytest.mark.slow
def test_a_style_is_learned_and_the_base_is_unchanged(
    model: GlobalHarmonizer, tuner: TargetFineTuner, volumes: list[UnifiedVolume]
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps: list[int] = []
    validation = [batches(volumes, 10**6, own=(2, 2))]
    tuned = tune(tuner, lambda step: batches(volumes, step), validation, lambda step, _: steps.append(step))
    assert tuned.validation["reconstruction"] < 0.8 * tuned.untuned["reconstruction"]
    assert tuned.validation["loss"] < tuned.untuned["loss"]
    assert tuned.steps in steps
    assert steps == list(range(1, len(steps) + 1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_stops_when_the_score_no_longer_falls(
    tuner: TargetFineTuner, volumes: list[UnifiedVolume], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "config", TargetConfig(steps=100, validate_every=2, patience=2, learning_rate=1e-12))
    steps: list[int] = []
    tuned = tune(
        tuner,
        lambda step: batches(volumes, step),
        [batches(volumes, 10**6, own=(2, 2))],
        lambda step, _: steps.append(step),
    )
    assert len(steps) <= 10
    assert tuned.steps <= len(steps)
