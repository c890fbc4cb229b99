"""Losses on slice groups.

Shapes: ``G`` groups, ``B`` slabs in all, ``K H W`` a slab. The slabs of a group come from one volume.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 64
"""Bins of the soft histograms over unit intensity 0 to 1.25."""

_EDGES = torch.linspace(0, 1.25, BINS)
_SOFTNESS = 0.02
"""Width of a soft histogram's edges, in unit intensity."""
_MOST_VALUES = 8192
"""Approximate number of voxels that are sampled from a group's brain for its histogram."""


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor, group: Tensor, outside: float = 0.1) -> Tensor:
    """Mean squared error with weight 1 in the brain and ``outside`` elsewhere, averaged first by group."""
    weight = mask * (1 - outside) + outside
    squared = (predicted - target).square()
    return _mean_over_groups(squared * weight, weight, group)


def gradient_mse(predicted: Tensor, target: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """Mean squared error of the in-plane forward differences over the brain (the paper's MSE of gradients).

    It is averaged first by group, as in :func:`masked_mse`.
    """
    error = predicted - target
    # Not `diff`: it sums gradients in another order, which changes the last digits of a training.
    lower_rows = error[..., 1:, :]
    upper_rows = error[..., :-1, :]
    down = lower_rows - upper_rows
    right_columns = error[..., 1:]
    left_columns = error[..., :-1]
    right = right_columns - left_columns
    squared_down = F.pad(down.square(), (0, 0, 1, 0))
    squared_right = F.pad(right.square(), (1, 0))
    squared = squared_down + squared_right
    return _mean_over_groups(squared * mask, mask, group)


def twin_mse(predicted: Tensor, mask: Tensor, group: Tensor, twin: Tensor) -> Tensor:
    """Mean squared difference, over the brain, of consecutive groups that show the same slices of one person.

    ``group`` and ``twin`` are ``(B,)`` long; the slabs of twins are in the same order. Zero if there is no pair.
    """
    groups = int(group.max()) + 1
    twin_of_group = [twin[group == index][0] for index in range(groups)]
    total = predicted.sum() * 0  # not a constant, so that there is a gradient even without a pair
    pairs = 0
    for index, (number, next_number) in enumerate(pairwise(twin_of_group)):
        if number != next_number:
            continue
        first = group == index
        second = group == index + 1
        weight = mask[first]
        difference = predicted[first] - predicted[second]
        error = difference.square() * weight
        total = total + error.sum() / weight.sum().clamp_min(1)
        pairs += 1
    return total / max(pairs, 1)


def _mean_over_groups(values: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Weighted mean of each group, then the mean of the groups: every volume counts the same on any worker."""
    values_of_slabs = values.flatten(1).sum(1)
    weights_of_slabs = weights.flatten(1).sum(1)
    of_slabs = torch.stack([values_of_slabs, weights_of_slabs], dim=1)
    groups = int(group.max()) + 1
    of_groups = of_slabs.new_zeros(groups, 2)
    of_groups = of_groups.index_add_(0, group, of_slabs)
    value_sums, weight_sums = of_groups.unbind(1)
    means = value_sums / weight_sums.clamp_min(1)
    return means.mean()


def group_statistics(image: Tensor, mask: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Soft cumulative histogram ``(G, BINS)`` and mean and standard deviation ``(G, 2)`` of each group's brain voxels.

    ``image`` ``(B, H, W)`` unit intensity, ``mask`` ``(B, H, W)``, ``group`` ``(B,)`` long.
    """
    cumulative = []
    moments = []
    for index in range(int(group.max()) + 1):
        in_group = group == index
        inside = mask[in_group] > 0
        values = image[in_group][inside]
        step = max(1, len(values) // _MOST_VALUES)
        values = values[::step]
        if not len(values):  # a group without brain
            values = image.new_zeros(1)
        cumulative.append(soft_cumulative(values))
        variance = values.var(unbiased=False)
        deviation = variance.add(1e-8).sqrt()
        moments.append(torch.stack([values.mean(), deviation]))
    return torch.stack(cumulative), torch.stack(moments)


def soft_cumulative(values: Tensor) -> Tensor:
    """Soft cumulative histogram: the share of the values ``(n,)`` below each edge, ``(BINS,)``; differentiable.

    A quantile function gives the histogram of its distribution, as its values are evenly spaced quantiles.
    """
    edges = _EDGES.to(values.device)[:, None]
    below_edge = torch.sigmoid((edges - values) / _SOFTNESS)
    return below_edge.mean(1)


def style_distance(cumulative: Tensor, moments: Tensor, domain_cumulative: Tensor, domain_moments: Tensor) -> Tensor:
    """Distance of each group from its unified domain, ``(G,)`` (arXiv 2601.08193, stage 1 loss).

    It is W1 of the histograms (the area between the cumulative histograms) plus the squared differences of mean and
    standard deviation.
    """
    width = float(_EDGES[-1])
    area_between = (cumulative - domain_cumulative).abs().mean(1)
    wasserstein = area_between * width
    squared_differences = (moments - domain_moments).square()
    return wasserstein + squared_differences.sum(1)


def multiscale_gradient_l1(
    predicted: Tensor, target: Tensor, mask: Tensor, scales: tuple[int, ...] = (1, 2, 4, 8)
) -> Tensor:
    """Mean absolute error of in-plane forward differences at several scales (arXiv 2601.08193, stage 2).

    All inputs are ``(B, K, H, W)``. At scale ``s`` images are averaged over squares of ``s`` pixels; the weight of a
    square is its share of the mask.
    """
    total = predicted.new_zeros(())
    for scale in scales:
        difference = (predicted - target) * mask
        error = F.avg_pool2d(difference, scale)
        weight = F.avg_pool2d(mask, scale)
        for axis in (-2, -1):
            pairs = weight.shape[axis] - 1
            weight_ahead = weight.narrow(axis, 1, pairs)
            weight_here = weight.narrow(axis, 0, pairs)
            pair_weight = torch.minimum(weight_ahead, weight_here)
            steps = error.diff(dim=axis).abs() * pair_weight
            total = total + steps.sum() / pair_weight.sum().clamp_min(1)
    return total / (2 * len(scales))


def style_displacement(displacements: Tensor, of_site: Tensor) -> Tensor:
    """How far displacements of style vectors ``(G, D)`` are from the site's displacement ``of_site`` ``(D,)``.

    Direction and magnitude count: ``1 - cos + 1.5 | |displacement| / |of_site| - 1 |``, the mean over ``G`` (arXiv
    2601.08193, stage 2). The paper does not divide by ``|of_site|``. Encoders differ in the length of their vectors;
    without the division, longer vectors would give style more weight and anatomy less.
    """
    cosine = F.cosine_similarity(displacements, of_site.expand_as(displacements), dim=1)
    direction = 1 - cosine
    lengths = displacements.norm(dim=1)
    length_of_site = of_site.norm().clamp_min(1e-6)
    magnitude = (lengths / length_of_site - 1).abs()
    return (direction + 1.5 * magnitude).mean()
