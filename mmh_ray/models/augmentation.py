"""Random styles: what another scanner might have made of the same anatomy."""

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
        styled = _coarsen(styled, int(_uniform(generator, 0, 3)), _uniform(generator, 1.2, 2.0))
    sigma = _uniform(generator, 0, config.blur_mm) / FWHM_PER_SIGMA / spacing_mm
    styled = gaussian_blur(styled, sigma) if sigma > 0.2 else styled
    if config.bias > 0:
        styled = styled * torch.exp(config.bias * _uniform(generator) * _smooth_field(image.shape, generator))
    if config.noise > 0:
        level = _uniform(generator, 0, config.noise)
        real, imaginary = torch.randn((2, *image.shape), generator=generator) * level
        styled = torch.hypot(styled + real, imaginary)
    return styled.clamp_min(0) * mask


def random_curve(image: Tensor, config: RestyleConfig, generator: torch.Generator, knots: int = 6) -> Tensor:
    """A random increasing intensity curve through (0, 0) and (1, 1) in ``knots`` pieces, after a random gamma."""
    gamma = math.exp(config.gamma * float(torch.randn((), generator=generator)))
    weights = torch.exp(2 * config.curve * torch.randn(knots, generator=generator))
    heights = F.pad(torch.cumsum(weights / weights.sum(), 0), (1, 0))
    position = image.clamp(0, 2).pow(gamma) * knots
    piece = position.floor().clamp(0, knots - 1)
    low, high = heights[piece.long()], heights[piece.long() + 1]
    return low + (high - low) * (position - piece)


def gaussian_blur(volume: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of ``(X, Y, Z)``, ``sigma`` in voxels, borders replicated."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=volume.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(3):
        rows = volume.movedim(axis, -1)
        padded = F.pad(rows.reshape(-1, 1, rows.shape[-1]), (radius, radius), mode="replicate")
        volume = F.conv1d(padded, kernel).reshape(rows.shape).movedim(-1, axis)
    return volume


def _coarsen(volume: Tensor, axis: int, factor: float) -> Tensor:
    """Lower the resolution along one axis and come back to the same grid."""
    rows = volume.movedim(axis, -1)
    flat = rows.reshape(-1, 1, rows.shape[-1])
    few = F.interpolate(flat, size=max(2, round(rows.shape[-1] / factor)), mode="linear")
    return F.interpolate(few, size=rows.shape[-1], mode="linear").reshape(rows.shape).movedim(-1, axis)


def _smooth_field(shape: torch.Size, generator: torch.Generator) -> Tensor:
    coarse = torch.randn((1, 1, 4, 4, 4), generator=generator)
    field = F.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    return (field - field.mean()) / field.std()


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
