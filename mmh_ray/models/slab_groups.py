"""Slice groups: cuts slabs and their condition from a volume, for training and for harmonizing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mmh_ray.config import ModelConfig
from mmh_ray.imaging.intensity import match_tissues
from mmh_ray.imaging.slices import NORMAL, PLANES, along, pad_slices, slice_shape, take_slabs
from mmh_ray.models.conditioning import condition_slices, difference_scales


class Conditioner:
    """Computes the condition of any slices of one volume; the robust scales are computed once.

    Parameters
    ----------
    volume:
        ``(X, Y, Z)`` float32, zero outside the mask; any intensity scale.
    mask:
        ``(X, Y, Z)`` bool.
    domain:
        ``(2, 257)`` quantile function and tissue quantiles of the sequence's unified domain. The volume is matched to
        them first, so that no increasing intensity curve changes the condition.
    """

    def __init__(self, volume: np.ndarray, mask: np.ndarray, domain: np.ndarray, model: ModelConfig) -> None:
        quantiles, tissues = domain
        matched = match_tissues(volume, mask, quantiles, tissues)
        brain = torch.from_numpy(np.ascontiguousarray(mask))
        self.slab = model.slab
        self.distances = model.distances
        self.size = padded_size(volume.shape, model)
        self.volume = torch.from_numpy(np.ascontiguousarray(matched, np.float32))
        self.scales = difference_scales(self.volume, brain, self.distances)

    def slabs(self, plane: str, indices: Sequence[int]) -> np.ndarray:
        """Condition ``(n, C, H, W)`` float32 of the slices at ``indices``: differences, then the matched slab."""
        volume = self.volume.numpy()
        slices = torch.from_numpy(along(volume, plane))
        differences = condition_slices(slices, indices, self.scales, self.distances)
        padded = pad_slices(differences.numpy(), self.size)
        intensities = take_slabs(volume, plane, indices, self.slab, self.size)
        return np.concatenate([padded, intensities], axis=1)


def padded_size(shape: Sequence[int], model: ModelConfig) -> tuple[int, int]:
    """Height and width of slabs that hold every plane and that the U-Net can fold and halve at every level."""
    levels = len(model.channels)
    multiple = model.patch * 2 ** (levels - 1)
    height, width = slice_shape(shape)
    rows = math.ceil(height / multiple)
    columns = math.ceil(width / multiple)
    return rows * multiple, columns * multiple


def brain_slices(mask: np.ndarray, plane: str) -> np.ndarray:
    """Indices of the slices that contain brain."""
    slices = along(mask, plane)
    has_brain = slices.any(axis=(1, 2))
    return np.flatnonzero(has_brain)


def stack_groups(groups: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack the arrays of groups of equal size; each array gains a leading axis."""
    return {name: np.stack([group[name] for group in groups]) for name in groups[0]}


def slab_group(
    images: Mapping[str, np.ndarray],
    conditioner: Conditioner,
    mask: np.ndarray,
    sequence: int,
    slabs_per_plane: int,
    seed: int,
    twin: int,
) -> dict[str, np.ndarray]:
    """One group: ``slabs_per_plane`` slabs of each plane, stratified along the brain to represent the whole volume.

    The caller numbers the groups and derives the seeds from the numbers, so that any worker makes the same group; no
    library sampler does that. ``seed`` decides the noise and ``twin`` the slices: groups of one person with the same
    twin number show the same slices.

    Returns arrays named as in ``SlabBatch`` (without ``group``) and as in ``images``, with ``3 * slabs_per_plane``
    slabs; images in float16.
    """
    rng = np.random.default_rng([seed, 3])
    places_rng = np.random.default_rng([twin, 4])
    size = conditioner.size
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*images, "condition", "mask", "plane", "position")}
    for number, plane in enumerate(PLANES):
        slices = brain_slices(mask, plane)
        last_index = mask.shape[NORMAL[plane]] - 1
        strata = np.arange(slabs_per_plane)
        places = (strata + places_rng.random(slabs_per_plane)) / slabs_per_plane
        ranks = np.minimum((places * len(slices)).astype(int), len(slices) - 1)
        indices = slices[ranks]
        for name, image in images.items():
            parts[name].append(take_slabs(image, plane, indices, conditioner.slab, size).astype(np.float16))
        parts["condition"].append(conditioner.slabs(plane, indices.tolist()).astype(np.float16))
        parts["mask"].append(take_slabs(mask, plane, indices, conditioner.slab, size).astype(np.uint8))
        parts["plane"].append(np.full(slabs_per_plane, number, np.int64))
        parts["position"].append((indices / max(1, last_index)).astype(np.float32))
    group = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    count = len(group["plane"])
    group["sequence"] = np.full(count, sequence, np.int64)
    group["twin"] = np.full(count, twin, np.int64)
    group["key"] = rng.integers(2**62, size=count)
    return group
