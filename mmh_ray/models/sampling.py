"""Sampling: a prepared volume through the denoiser, plane by plane, and fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor

from mmh_ray.config import HarmonizeConfig
from mmh_ray.imaging.slices import NORMAL, PLANES, assemble, take_slabs
from mmh_ray.models.denoiser import Context, to_diffusion, to_unit
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.groups import Conditioner, brain_slices, padded_side

Denoise = Callable[[Tensor, int], Tensor]
"""x0 from (x_t, t) with condition and context already bound."""


@torch.inference_mode()
def harmonize_volume(
    model: GlobalHarmonizer, image: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
) -> np.ndarray:
    """The volume in the unified domain.

    Parameters
    ----------
    image:
        ``(X, Y, Z)`` unit intensity on the working grid, zero outside the mask.
    mask:
        ``(X, Y, Z)`` bool.
    sequence:
        Index into the model's sequences.

    Returns
    -------
    ``(X, Y, Z)`` float32 unit intensity, not negative, zero outside the mask.
    """
    conditioner = Conditioner(image, mask, model.model_config.distances)
    noise = np.random.default_rng(settings.seed).standard_normal(image.shape).astype(np.float32)
    estimates = [_run_plane(model, image, mask, noise, conditioner, plane, sequence, settings) for plane in settings.planes]
    fused = np.median(estimates, axis=0) if settings.fusion == "median" else np.mean(estimates, axis=0)
    return (np.clip(fused, 0, None) * mask).astype(np.float32)


def _run_plane(
    model: GlobalHarmonizer,
    image: np.ndarray,
    mask: np.ndarray,
    noise: np.ndarray,
    conditioner: Conditioner,
    plane: str,
    sequence: int,
    settings: HarmonizeConfig,
) -> np.ndarray:
    indices, side, slab = brain_slices(mask, plane), padded_side(image.shape), model.model_config.slab
    device = next(model.parameters()).device
    results = []
    for chunk in np.array_split(indices, -(-len(indices) // settings.batch_slabs)):
        condition = torch.from_numpy(conditioner.slabs(plane, chunk.tolist())).to(device)
        context = make_context(model, plane, chunk, image.shape[NORMAL[plane]], sequence, device)

        def denoise(x: Tensor, t: int, condition: Tensor = condition, context: Context = context) -> Tensor:
            return model.denoiser(x, torch.full((len(x),), t, device=x.device), condition, context)

        origin = to_diffusion(torch.from_numpy(take_slabs(image, plane, chunk, slab, side)))
        start = torch.from_numpy(take_slabs(noise, plane, chunk, slab, side))
        if settings.inversion_depth:
            sampled = invert_and_sample(model, denoise, origin.to(device), settings.inversion_depth, settings.steps)
        else:
            sampled = sample(model, denoise, start.to(device), settings.steps)
        results.append(to_unit(sampled).float().cpu().numpy())
    return assemble(np.concatenate(results), plane, indices.tolist(), image.shape)


def make_context(
    model: GlobalHarmonizer, plane: str, indices: Sequence[int], depth: int, sequence: int, device: torch.device
) -> Context:
    """Context of ``n`` slices of one plane of a volume with ``depth`` slices along its normal."""
    count = len(indices)
    labels = torch.full((count,), sequence, device=device)
    position = torch.as_tensor(np.asarray(indices) / max(1, depth - 1), dtype=torch.float32, device=device)
    return Context(labels, torch.full_like(labels, PLANES.index(plane)), position, model.domain_moments[labels])


def sample(model: GlobalHarmonizer, denoise: Denoise, noise: Tensor, steps: int) -> Tensor:
    """DDIM (Song et al., ICLR 2021, eta = 0) from pure noise in ``steps`` steps; one step is the x0 prediction at T."""
    scheduler = type(model.scheduler).from_config(model.scheduler.config)
    scheduler.set_timesteps(steps, device=noise.device)
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(denoise(x, int(timestep)), int(timestep), x).prev_sample
    return x


def invert_and_sample(model: GlobalHarmonizer, denoise: Denoise, origin: Tensor, depth: int, steps: int) -> Tensor:
    """The published procedure: DDIM inversion of the source in ``depth`` steps, then DDIM sampling in ``steps`` steps.

    Both run on the training schedule with leading timesteps, so that labels and noise levels agree.
    """
    config = {**model.scheduler.config, "timestep_spacing": "leading"}
    inverse = DDIMInverseScheduler.from_config(config)
    inverse.set_timesteps(depth, device=origin.device)
    x = origin
    for timestep in inverse.timesteps:
        x = inverse.step(denoise(x, int(timestep)), int(timestep), x).prev_sample
    forward = type(model.scheduler).from_config(config)
    forward.set_timesteps(steps, device=origin.device)
    for timestep in forward.timesteps:
        x = forward.step(denoise(x, int(timestep)), int(timestep), x).prev_sample
    return x
