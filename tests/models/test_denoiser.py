"""The denoiser keeps shapes and uses its context; the schedule is the paper's and ends in pure noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmh_ray.config import ModelConfig
from mmh_ray.models import conditioning
from mmh_ray.models.denoiser import Context, Denoiser, make_scheduler, to_diffusion, to_unit

pytestmark = pytest.mark.fast

CONTEXT = Context(
    torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.tensor([0.5]), torch.tensor([[0.5, 0.2]])
)


def inputs(config: ModelConfig, side: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One noisy slab, its timestep and its condition."""
    channels = conditioning.channels(config.distances) + config.slab
    return torch.randn(1, config.slab, side, side), torch.tensor([500]), torch.randn(1, channels, side, side)


@pytest.mark.parametrize(
    "changes", [{}, {"slab": 1}, {"slab": 5}, {"patch": 1}, {"patch": 4}, {"layers": 2}, {"attention": True}]
)
def test_output_has_the_shape_of_the_slab(tiny: ModelConfig, changes: dict[str, int]) -> None:
    config = replace(tiny, **changes)
    with torch.inference_mode():
        predicted = Denoiser(config)(*inputs(config), CONTEXT)
    assert predicted.shape == (1, config.slab, 16, 16)
    assert torch.isfinite(predicted).all()


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": torch.tensor([1])},
        {"plane": torch.tensor([2])},
        {"position": torch.tensor([0.1])},
        {"domain": torch.tensor([[0.3, 0.2]])},
        {"domain": torch.tensor([[0.5, 0.4]])},
    ],
    ids=["sequence", "plane", "position", "domain mean", "domain deviation"],
)
@torch.inference_mode()
def test_every_part_of_the_context_changes_the_output(tiny: ModelConfig, change: dict[str, torch.Tensor]) -> None:
    denoiser, given = Denoiser(tiny), inputs(tiny)
    assert not torch.allclose(denoiser(*given, replace(CONTEXT, **change)), denoiser(*given, CONTEXT), atol=1e-6)


@torch.inference_mode()
def test_noise_timestep_and_condition_change_the_output(tiny: ModelConfig) -> None:
    denoiser, (noisy, timestep, condition) = Denoiser(tiny), inputs(tiny)
    plain = denoiser(noisy, timestep, condition, CONTEXT)
    for other in ((noisy + 1, timestep, condition), (noisy, timestep - 400, condition), (noisy, timestep, -condition)):
        assert not torch.allclose(denoiser(*other, CONTEXT), plain, atol=1e-6)


@torch.inference_mode()
def test_slabs_of_a_batch_do_not_mix(tiny: ModelConfig) -> None:
    denoiser, (noisy, timestep, condition) = Denoiser(tiny), inputs(tiny)
    two = [torch.cat([part, part.flip(-1) if part.ndim > 1 else part]) for part in (noisy, timestep, condition)]
    both = denoiser(*two, Context(*(torch.cat([value, value]) for value in vars(CONTEXT).values())))
    torch.testing.assert_close(both[:1], denoiser(noisy, timestep, condition, CONTEXT), atol=1e-5, rtol=1e-4)


def test_schedule_is_the_papers() -> None:
    """Lin et al. (WACV 2024), algorithm 1, in double precision."""
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    found = make_scheduler(ModelConfig()).alphas_cumprod
    assert len(found) == 1000
    for timestep in (0, 487, 999):
        assert float(found[timestep]) == pytest.approx(expected[timestep], abs=2e-5)
    assert float(found[0]) == pytest.approx(1 - 0.0015, abs=1e-6)


def test_schedule_ends_in_pure_noise_and_falls_all_the_way() -> None:
    scheduler = make_scheduler(ModelConfig())
    assert scheduler.alphas_cumprod[-1] == 0
    assert (scheduler.alphas_cumprod.diff() < 0).all()
    noise, image = torch.randn(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    assert torch.equal(scheduler.add_noise(image, noise, torch.tensor([999])), noise)


def test_sampling_starts_at_the_last_timestep() -> None:
    scheduler = make_scheduler(ModelConfig())
    for steps in (1, 2, 5):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == 999
        assert len(scheduler.timesteps) == steps


def test_diffusion_intensity_and_back() -> None:
    unit = torch.tensor([0.0, 0.5, 1.0, 1.2])
    torch.testing.assert_close(to_diffusion(unit), torch.tensor([-1.0, 0.0, 1.0, 1.4]))
    torch.testing.assert_close(to_unit(to_diffusion(unit)), unit)
