"""The style-agnostic condition: differences in three directions at several distances, robustly scaled and squashed.

arXiv 2601.08193 conditions on the mean of three forward differences, ``0.5 tanh(clip(g / q99(|g|), -5, 5))``. That
mean of signed differences does not see edges along which the three differences cancel out, and a one-voxel difference
sees nothing inside wide flat regions. So here the three components stay separate. They are computed at several
distances, and the components of each distance are scaled by their quantile over the brain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

QUANTILE = 0.8
"""Quantile of the absolute differences over the brain; it is scaled to 1 before squashing."""

_SAMPLES = 16384


def channels(distances: Sequence[int]) -> int:
    """Number of difference channels: three components per distance."""
    return 3 * len(distances)


def difference_scales(volume: Tensor, mask: Tensor, distances: Sequence[int]) -> Tensor:
    """Scale of the differences per distance, ``(D,)``: their 80 % quantile over a regular sample of the brain.

    ``volume`` ``(X, Y, Z)`` float, ``mask`` ``(X, Y, Z)`` bool. The scales grow with the volume's contrast, so that the
    condition does not.
    """
    voxels = mask.nonzero()
    voxels = voxels[:: max(1, len(voxels) // _SAMPLES)]
    here = volume[tuple(voxels.T)]
    last_voxel = torch.tensor(volume.shape, device=voxels.device) - 1
    scales = []
    for distance in distances:
        steps = distance * torch.eye(3, dtype=voxels.dtype, device=voxels.device)
        along_axes = []
        for step in steps:
            neighbours = torch.minimum(voxels + step, last_voxel)
            along_axes.append(volume[tuple(neighbours.T)] - here)
        differences = torch.cat(along_axes).abs()
        scale = torch.quantile(differences, QUANTILE) if differences.numel() else volume.new_ones(())
        scales.append(scale)
    return torch.stack(scales).clamp_min(1e-6)


def condition_slices(slices: Tensor, indices: Sequence[int], scales: Tensor, distances: Sequence[int]) -> Tensor:
    """Differences at some slices of a plane, ``(n, 3 D, height, width)`` in (-0.5, 0.5).

    Parameters
    ----------
    slices:
        ``(N, height, width)``, the whole volume stacked along the plane's normal.
    indices:
        ``n`` positions along the normal.
    scales:
        ``(D,)`` from :func:`difference_scales`.
    distances:
        ``D`` distances in voxels. Component order per distance: along the normal, down, right. Beyond the end the last
        voxel is repeated.
    """
    here = slices[list(indices)]
    last = len(slices) - 1
    components = []
    for scale, distance in zip(scales, distances, strict=True):
        along_normal = slices[[min(index + distance, last) for index in indices]]
        down = _shift(here, 1, distance)
        right = _shift(here, 2, distance)
        for neighbour in (along_normal, down, right):
            scaled = ((neighbour - here) / scale).clamp(-5, 5)
            components.append(0.5 * torch.tanh(scaled))
    return torch.stack(components, dim=1)


def _shift(tensor: Tensor, axis: int, distance: int) -> Tensor:
    """``tensor[i + distance]`` along an axis; beyond the end the last element is repeated."""
    size = tensor.shape[axis]
    here = torch.arange(size, device=tensor.device)
    there = (here + distance).clamp(max=size - 1)
    return tensor.index_select(axis, there)
