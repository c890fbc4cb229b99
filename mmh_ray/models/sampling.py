"""Sampling: runs a prepared volume through the denoiser, plane by plane, and fuses the planes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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
"""Predicts x0 from (x_t, t); condition and context are already bound."""

INVERSION_TOP = 0.95
"""Share of the schedule that inversion covers: at the very end the noise hides the source."""


@one_thread()
@torch.inference_mode()
def estimate_planes(
    model: GlobalHarmonizer, image: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
) -> np.ndarray:
    """Estimate the volume in the unified domain, once from the slices of each plane.

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
        If the model's output is not finite.
    """
    domain = model.domain_quantiles[sequence].cpu().numpy()
    conditioner = Conditioner(image, mask, domain, model.model_config)
    side = max(conditioner.size) + model.model_config.slab - 1
    rng = np.random.default_rng(settings.seed)
    noise = rng.standard_normal((side, side, side)).astype(np.float32)
    scan = _PreparedScan(image, mask, sequence, conditioner, noise)
    estimates = [_run_plane(model, scan, plane, settings) for plane in settings.planes]
    return _finite(np.stack(estimates), "the denoiser")


def fuse(estimates: np.ndarray, mask: np.ndarray, settings: HarmonizeConfig) -> np.ndarray:
    """Fuse the planes' estimates ``(planes, X, Y, Z)`` into one volume ``(X, Y, Z)`` float32.

    The result is not negative, and zero outside the mask.

    Raises
    ------
    ModelError
        If an estimate is not finite.
    """
    _finite(estimates, "the target")
    middle = np.median if settings.fusion == "median" else np.mean
    fused = middle(estimates, axis=0)
    not_negative = np.clip(fused, 0, None)
    return (not_negative * mask).astype(np.float32)


def _finite(image: np.ndarray, source: str) -> np.ndarray:
    """Return the image if it is finite; otherwise the error names what spoiled it."""
    if not np.isfinite(image).all():
        raise ModelError(f"values that are not finite from {source}", "finite intensities", "Train it again.")
    return image


def unify_planes(
    model: GlobalHarmonizer, image: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
) -> np.ndarray:
    """As :func:`estimate_planes`, with intensities corrected to the levels of the unified domain."""
    planes = estimate_planes(model, image, mask, sequence, settings)
    levels = model.levels.get(sequence)
    return planes if levels is None else levels.apply(planes)


def harmonize_volume(
    model: GlobalHarmonizer, image: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
) -> np.ndarray:
    """Bring a prepared volume into the unified domain, ``(X, Y, Z)`` float32 unit intensity.

    Arguments as for :func:`estimate_planes`.
    """
    return fuse(unify_planes(model, image, mask, sequence, settings), mask, settings)


@dataclass(frozen=True)
class _PreparedScan:
    """The inputs that all planes of a scan share.

    Attributes
    ----------
    image, mask, sequence:
        As for :func:`estimate_planes`.
    conditioner:
        Computes the condition of the slabs.
    noise:
        Cube of noise that the slabs are cut from; see :func:`noise_slabs`.
    """

    image: np.ndarray
    mask: np.ndarray
    sequence: int
    conditioner: Conditioner
    noise: np.ndarray


def _run_plane(model: GlobalHarmonizer, scan: _PreparedScan, plane: str, settings: HarmonizeConfig) -> np.ndarray:
    """Estimate the volume ``(X, Y, Z)`` from the slices of one plane, batch by batch."""
    indices = brain_slices(scan.mask, plane)
    count = math.ceil(len(indices) / settings.batch_slabs)
    batches = np.array_split(indices, count)
    slabs = [_run_slabs(model, scan, plane, batch, settings) for batch in batches]
    return assemble(np.concatenate(slabs), plane, indices.tolist(), scan.image.shape)


def _run_slabs(
    model: GlobalHarmonizer, scan: _PreparedScan, plane: str, indices: np.ndarray, settings: HarmonizeConfig
) -> np.ndarray:
    """Slabs ``(n, K, H, W)`` around some slices of a plane, in the unified domain and unit intensity."""
    device = next(model.parameters()).device
    shape = scan.image.shape
    slab = model.model_config.slab
    size = scan.conditioner.size
    slices = indices.tolist()
    condition = torch.from_numpy(scan.conditioner.slabs(plane, slices)).to(device)
    depth = shape[NORMAL[plane]]
    context = make_context(
        model=model, plane=plane, indices=indices, depth=depth, sequence=scan.sequence, device=device
    )

    def denoise(x: Tensor, t: int) -> Tensor:
        timesteps = torch.full((len(x),), t, device=x.device)
        return model.denoiser(x, timesteps, condition, context)

    if settings.inversion_depth:
        slabs = torch.from_numpy(take_slabs(scan.image, plane, slices, slab, size))
        origin = to_diffusion(slabs).to(device)
        sampled = invert_and_sample(model, denoise, origin, settings.inversion_depth, settings.steps)
    else:
        noise = torch.from_numpy(noise_slabs(scan.noise, plane, indices, slab, shape, size))
        sampled = sample(model, denoise, noise.to(device), settings.steps)
    return to_unit(sampled).float().cpu().numpy()


def noise_slabs(
    cube: np.ndarray, plane: str, indices: np.ndarray, slab: int, shape: tuple[int, ...], size: tuple[int, int]
) -> np.ndarray:
    """Cut the noise ``(n, K, H, W)`` of the slabs from a cube of side ``max(H, W) + K - 1``.

    A voxel gets the same noise in every plane and slab.
    """
    side = cube.shape[0] - slab + 1
    half = slab // 2
    normal, down, right = AXES[plane]
    padded_height, padded_width = size
    # Where the volume begins in the cube, less half a slab; then where the padded slice around it begins.
    first_slice = (side - shape[normal]) // 2
    top_of_slice = (side - shape[down]) // 2 + half
    left_of_slice = (side - shape[right]) // 2 + half
    top = top_of_slice - (padded_height - shape[down]) // 2
    left = left_of_slice - (padded_width - shape[right]) // 2
    bottom = top + padded_height
    right_end = left + padded_width
    padded = along(cube, plane)[:, top:bottom, left:right_end]
    first_of_slabs = first_slice + np.asarray(indices)[:, None]
    slices = first_of_slabs + np.arange(slab)
    return padded[slices]


def make_context(
    model: GlobalHarmonizer, plane: str, indices: np.ndarray, depth: int, sequence: int, device: torch.device
) -> Context:
    """Context of ``n`` slices of one plane; the volume has ``depth`` slices along the plane's normal."""
    last_slice = max(1, depth - 1)
    position = np.asarray(indices) / last_slice
    sequences = torch.full((len(indices),), sequence, device=device)
    return Context(
        sequence=sequences,
        plane=torch.full_like(sequences, PLANES.index(plane)),
        position=torch.as_tensor(position, dtype=torch.float32, device=device),
        domain=model.domain_moments[sequences],
    )


def sample(model: GlobalHarmonizer, denoise: Denoise, noise: Tensor, steps: int, last: int | None = None) -> Tensor:
    """DDIM sampling from pure noise at the last timestep; with one step, the result is the x0 prediction at T.

    Gradients flow only through the ``last`` steps (None: all), so that memory does not grow with ``steps``.
    """
    last_timestep = len(model.scheduler.alphas_cumprod) - 1
    labels = np.linspace(last_timestep, -1, steps + 1)
    steps_without_gradient = 0
    if last is not None:
        steps_without_gradient = max(0, steps - last)
    if steps_without_gradient:
        first_labels = labels[: steps_without_gradient + 1]
        with torch.no_grad():
            noise = walk(model, denoise, noise, first_labels)
    return walk(model, denoise, noise, labels[steps_without_gradient:])


def invert_and_sample(model: GlobalHarmonizer, denoise: Denoise, origin: Tensor, depth: int, steps: int) -> Tensor:
    """The published procedure: DDIM inversion of the source in ``depth`` steps, then DDIM sampling in ``steps`` steps.

    Both use the training schedule; sampling starts at the timestep where inversion ended.
    """
    timesteps = len(model.scheduler.alphas_cumprod)
    top = round(INVERSION_TOP * timesteps)
    upwards = np.linspace(0, top, depth + 1)
    downwards = np.linspace(top, -1, steps + 1)
    inverted = walk(model, denoise, origin, upwards)
    return walk(model, denoise, inverted, downwards)


def walk(model: GlobalHarmonizer, denoise: Denoise, x: Tensor, labels: np.ndarray) -> Tensor:
    """Deterministic DDIM through timesteps in either direction (Song et al., ICLR 2021, eq. 12 with sigma = 0).

    Timestep -1 is the clean image. diffusers has both directions too, but places their timesteps differently.
    """
    alphas = [*model.scheduler.alphas_cumprod.tolist(), 1.0]  # [-1] is the clean image
    timesteps = labels.round().astype(int).tolist()
    for here, there in pairwise(timesteps):
        alpha_here = alphas[here]
        alpha_there = alphas[there]
        clean = denoise(x, here)
        noise_part = x - alpha_here**0.5 * clean
        noise = noise_part / (1 - alpha_here) ** 0.5
        x = alpha_there**0.5 * clean + (1 - alpha_there) ** 0.5 * noise
    return x
