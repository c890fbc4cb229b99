"""Random styles: changes a volume as if another scanner had scanned the same anatomy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmh_ray.config import RestyleConfig
from mmh_ray.imaging.smoothing import FWHM_PER_SIGMA


def restyle(
    image: Tensor, mask: Tensor, spacing_mm: float, config: RestyleConfig, generator: torch.Generator
) -> Tensor:
    """Re-style a unit-intensity volume: monotone curve, gamma, resolution, blur, smooth bias, Rician noise.

    ``image`` ``(X, Y, Z)`` float with the brain's 99.5th percentile at 1, ``mask`` ``(X, Y, Z)`` bool; returns the same
    shape, not negative, zero outside the mask. All randomness comes from ``generator``.
    """
    styled = random_curve(image, config, generator)
    if config.coarsen > 0 and _uniform(generator) < config.coarsen:
        axis = int(_uniform(generator, 0, 3))
        styled = _coarsen(styled, axis, factor=_uniform(generator, 1.2, 2.0))
    sigma = _uniform(generator, 0, config.blur_mm) / FWHM_PER_SIGMA / spacing_mm
    if sigma > 0.2:
        styled = gaussian_blur(styled, sigma)
    if config.bias > 0:
        strength = config.bias * _uniform(generator)
        styled = styled * torch.exp(strength * _smooth_field(image.shape, generator))
    if config.noise > 0:
        level = _uniform(generator, 0, config.noise)
        real, imaginary = torch.randn((2, *image.shape), generator=generator) * level
        styled = torch.hypot(styled + real, imaginary)
    return styled.clamp_min(0) * mask


def random_curve(image: Tensor, config: RestyleConfig, generator: torch.Generator, knots: int = 6) -> Tensor:
    """Apply a random gamma, then a random increasing curve of ``knots`` pieces through (0, 0) and (1, 1)."""
    log_gamma = config.gamma * float(torch.randn((), generator=generator))
    gamma = math.exp(log_gamma)
    log_steps = 2 * config.curve * torch.randn(knots, generator=generator)
    steps = torch.exp(log_steps)
    rises = torch.cumsum(steps / steps.sum(), 0)
    heights = F.pad(rises, (1, 0))
    position = image.clamp(0, 2).pow(gamma) * knots
    piece = position.floor().clamp(0, knots - 1)
    number = piece.long()
    low = heights[number]
    high = heights[number + 1]
    return low + (high - low) * (position - piece)


def gaussian_blur(volume: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of ``(X, Y, Z)`` with ``sigma`` in voxels; borders are replicated."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=volume.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (weights / weights.sum())[None, None]
    for axis in range(3):
        rows = volume.movedim(axis, -1)
        length = rows.shape[-1]
        flat = rows.reshape(-1, 1, length)
        padded = F.pad(flat, (radius, radius), mode="replicate")
        blurred = F.conv1d(padded, kernel)
        volume = blurred.reshape(rows.shape).movedim(-1, axis)
    return volume


def _coarsen(volume: Tensor, axis: int, factor: float) -> Tensor:
    """Lower the resolution along one axis, then interpolate back to the same grid."""
    rows = volume.movedim(axis, -1)
    length = rows.shape[-1]
    coarse_length = max(2, round(length / factor))
    flat = rows.reshape(-1, 1, length)
    coarse = F.interpolate(flat, size=coarse_length, mode="linear")
    back = F.interpolate(coarse, size=length, mode="linear")
    return back.reshape(rows.shape).movedim(-1, axis)


def _smooth_field(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Smooth random field ``(X, Y, Z)`` of zero mean and unit variance."""
    coarse = torch.randn((1, 1, 4, 4, 4), generator=generator)
    fine = F.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)
    field = fine[0, 0]
    centred = field - field.mean()
    return centred / field.std()


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    share = float(torch.rand((), generator=generator))
    return low + (high - low) * share
