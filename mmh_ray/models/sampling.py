"""Sampling: a prepared volume through the denoiser, plane by plane, and fused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mmh_ray.config import HarmonizeConfig
from mmh_ray.errors import ModelError
from mmh_ray.imaging.slices import AXES, NORMAL, PLANES, along, assemble, take_slabs
from mmh_ray.models.denoiser import Context, to_diffusion, to_unit
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.slab_groups import Conditioner, brain_slices
from mmh_ray.threads import one_thread

Denoise = Callable[[Tensor, int], Tensor]
"""x0 from (x_t, t) with condition and context already bound."""

INVERSION_TOP = 0.95
"""Share of the schedule that inversion climbs: at its very end the noise level hides the source."""


@one_thread()
@torch.inference_mode()
def estimate_planes(
    model: GlobalHarmonizer, image: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
) -> np.ndarray:
    """The volume in the unified domain as each plane's slices show it.

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
    ``(planes, X, Y, Z)`` float32 unit intensity.

    Raises
    ------
    ModelError
        If the model gives values that are not finite.
    """
    domain = model.domain_quantiles[sequence].cpu().numpy()
    conditioner = Conditioner(image, mask, domain, model.model_config)
    side = max(conditioner.size) + model.model_config.slab - 1
    noise = np.random.default_rng(settings.seed).standard_normal((side,) * 3).astype(np.float32)
    estimates = np.stack(
        [_run_plane(model, image, mask, noise, conditioner, plane, sequence, settings) for plane in settings.planes]
    )
    return _finite(estimates, "the denoiser")


def fuse(estimates: np.ndarray, mask: np.ndarray, settings: HarmonizeConfig) -> np.ndarray:
    """One volume ``(X, Y, Z)`` float32 of the planes' estimates ``(planes, X, Y, Z)``; not negative, zero outside the mask.

    Raises
    ------
    ModelError
        If an estimate is not finite.
    """
    _finite(estimates, "the target")
    fused = np.median(estimates, axis=0) if settings.fusion == "median" else np.mean(estimates, axis=0)
    return (np.clip(fused, 0, None) * mask).astype(np.float32)


def _finite(image: np.ndarray, source: str) -> np.ndarray:
    """The image, if it is one: what the model or a target spoils is said where it happened."""
    if not np.isfinite(image).all():
        raise ModelError(f"values that are not finite from {source}", "finite intensities", "Train it anew.")
    return image


def harmonize_volume(
    model: GlobalHarmonizer, image: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
) -> np.ndarray:
    """A prepared volume in the unified domain, ``(X, Y, Z)`` float32 unit intensity; arguments as of :func:`estimate_planes`."""
    return fuse(estimate_planes(model, image, mask, sequence, settings), mask, settings)


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
    indices, slab = brain_slices(mask, plane), model.model_config.slab
    device = next(model.parameters()).device
    results = []
    for chunk in np.array_split(indices, -(-len(indices) // settings.batch_slabs)):
        condition = torch.from_numpy(conditioner.slabs(plane, chunk.tolist())).to(device)
        context = make_context(model, plane, chunk, image.shape[NORMAL[plane]], sequence, device)

        def denoise(x: Tensor, t: int, condition: Tensor = condition, context: Context = context) -> Tensor:
            return model.denoiser(x, torch.full((len(x),), t, device=x.device), condition, context)

        if settings.inversion_depth:
            origin = to_diffusion(torch.from_numpy(take_slabs(image, plane, chunk.tolist(), slab, conditioner.size)))
            sampled = invert_and_sample(model, denoise, origin.to(device), settings.inversion_depth, settings.steps)
        else:
            start = torch.from_numpy(noise_slabs(noise, plane, chunk, slab, image.shape, conditioner.size))
            sampled = sample(model, denoise, start.to(device), settings.steps)
        results.append(to_unit(sampled).float().cpu().numpy())
    return assemble(np.concatenate(results), plane, indices.tolist(), image.shape)


def noise_slabs(
    cube: np.ndarray, plane: str, indices: np.ndarray, slab: int, shape: tuple[int, ...], size: tuple[int, int]
) -> np.ndarray:
    """Noise ``(n, K, H, W)`` of the slabs from a cube of side ``max(H, W) + K - 1``: a voxel has the same noise in every plane and slab."""
    side = cube.shape[0] - slab + 1
    depth, *corner = ((side - shape[axis]) // 2 for axis in AXES[plane])  # of the volume in the cube, less half a slab
    parts = (shape[axis] for axis in AXES[plane][1:])
    top, left = (
        start + slab // 2 - (whole - part) // 2 for start, whole, part in zip(corner, size, parts, strict=True)
    )
    slices = along(cube, plane)[:, top : top + size[0], left : left + size[1]]
    return slices[depth + np.asarray(indices)[:, None] + np.arange(slab)]


def make_context(
    model: GlobalHarmonizer, plane: str, indices: np.ndarray, depth: int, sequence: int, device: torch.device
) -> Context:
    """Context of ``n`` slices of one plane of a volume with ``depth`` slices along its normal."""
    labels = torch.full((len(indices),), sequence, device=device)
    position = torch.as_tensor(np.asarray(indices) / max(1, depth - 1), dtype=torch.float32, device=device)
    return Context(labels, torch.full_like(labels, PLANES.index(plane)), position, model.domain_moments[labels])


def sample(model: GlobalHarmonizer, denoise: Denoise, noise: Tensor, steps: int, last: int | None = None) -> Tensor:
    """DDIM from pure noise at the last timestep to the clean image; one step is the x0 prediction at T.

    Gradients flow through the ``last`` steps only, so that memory does not grow with ``steps``; None lets them through all.
    """
    labels = np.linspace(len(model.scheduler.alphas_cumprod) - 1, -1, steps + 1)
    first = 0 if last is None else max(0, steps - last)
    if first:
        with torch.no_grad():
            noise = _walk(model, denoise, noise, labels[: first + 1])
    return _walk(model, denoise, noise, labels[first:])


def invert_and_sample(model: GlobalHarmonizer, denoise: Denoise, origin: Tensor, depth: int, steps: int) -> Tensor:
    """The published procedure: DDIM inversion of the source in ``depth`` steps, then DDIM sampling in ``steps`` steps.

    Both run on the training schedule, and sampling starts at the label where inversion ended.
    """
    top = round(INVERSION_TOP * len(model.scheduler.alphas_cumprod))
    inverted = _walk(model, denoise, origin, np.linspace(0, top, depth + 1))
    return _walk(model, denoise, inverted, np.linspace(top, -1, steps + 1))


def _walk(model: GlobalHarmonizer, denoise: Denoise, x: Tensor, labels: np.ndarray) -> Tensor:
    """Deterministic DDIM through timesteps in either direction (Song et al., ICLR 2021, eq. 12 with sigma = 0); -1 is the clean image.

    diffusers has this too, but its inversion and its sampling place their timesteps differently.
    """
    alphas = [*model.scheduler.alphas_cumprod.tolist(), 1.0]  # [-1] is the clean image
    for here, there in pairwise(labels.round().astype(int).tolist()):
        clean = denoise(x, here)
        noise = (x - alphas[here] ** 0.5 * clean) / (1 - alphas[here]) ** 0.5
        x = alphas[there] ** 0.5 * clean + (1 - alphas[there]) ** 0.5 * noise
    return x
