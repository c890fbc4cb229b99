"""Losses on slice groups. ``G`` groups, ``B`` slabs of them all, ``K H W`` a slab; a group's slabs come from one volume."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 64
"""Bins of the soft histograms over unit intensity 0 to 1.25."""

_EDGES = torch.linspace(0, 1.25, BINS)
_SOFTNESS = 0.02


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor, outside: float = 0.1) -> Tensor:
    """Mean squared error, brain voxels at weight 1, the others at ``outside``."""
    weight = mask * (1 - outside) + outside
    return ((predicted - target).square() * weight).sum() / weight.sum()


def gradient_mse(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the in-plane forward differences over the brain (the paper's MSE of gradients)."""
    error, total = (predicted - target), mask.sum().clamp_min(1)
    down, right = error[..., 1:, :] - error[..., :-1, :], error[..., 1:] - error[..., :-1]
    return ((down.square() * mask[..., 1:, :]).sum() + (right.square() * mask[..., 1:]).sum()) / total


def group_statistics(image: Tensor, mask: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Soft cumulative histogram ``(G, BINS)`` and mean and standard deviation ``(G, 2)`` of each group's brain voxels.

    ``image`` ``(B, H, W)`` unit intensity, ``mask`` ``(B, H, W)``, ``group`` ``(B,)`` long.
    """
    edges = _EDGES.to(image.device)
    cumulative, moments = [], []
    for index in range(groups):
        values = image[group == index][mask[group == index] > 0]
        values = values[:: max(1, len(values) // 8192)]
        if not len(values):  # a group without brain says nothing: it sits on the domain's neutral point
            values = image.new_zeros(1)
        cumulative.append(torch.sigmoid((edges[:, None] - values) / _SOFTNESS).mean(1))
        moments.append(torch.stack([values.mean(), values.var(unbiased=False).add(1e-8).sqrt()]))
    return torch.stack(cumulative), torch.stack(moments)


def style_distance(cumulative: Tensor, moments: Tensor, domain_cumulative: Tensor, domain_moments: Tensor) -> Tensor:
    """Distance of each group from its unified domain, ``(G,)``: W1 of the histograms (area between the cumulative ones) plus the
    squared differences of mean and standard deviation (arXiv 2601.08193, stage 1 loss)."""
    wasserstein = (cumulative - domain_cumulative).abs().mean(1) * float(_EDGES[-1])
    return wasserstein + (moments - domain_moments).square().sum(1)


def cumulative_from_quantiles(quantiles: Tensor) -> Tensor:
    """Soft cumulative histogram ``(BINS,)`` of the distribution with quantile function ``(Q,)``."""
    return torch.sigmoid((_EDGES[:, None].to(quantiles) - quantiles) / _SOFTNESS).mean(1)
