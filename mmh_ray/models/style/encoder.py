"""The tri-planar attention style encoder: maps a volume to a vector that describes the scanner, not the person.

Shapes: ``B`` volumes ``X Y Z``; 3 planes in the order of :data:`mmh_ray.imaging.slices.PLANES`; ``K`` slices per plane;
``D`` dimensions.

Source: arXiv 2601.08193, with four differences. Slices are spread over the extent of each brain, not between fixed
indices. Positions and features have fixed lengths before they are added, so that neither dominates. The attention
starts as a mean over slices. Planes of a scan can be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmh_ray.config import StyleConfig
from mmh_ray.errors import DataError, ModelError
from mmh_ray.imaging.resolution import sharp_planes
from mmh_ray.imaging.slices import AXES, NORMAL, PLANES
from mmh_ray.models.style.backbones import load_backbone, weights_hash
from mmh_ray.models.style.embedded import EMBEDDED, embedded_weights
from mmh_ray.models.style.slice_backbone import SliceBackbone

HEADS = 8
"""Heads of the attention pooling."""

_MARGIN = 0.1
"""Share of a brain's slices at either end that is not used."""
_POSITION = 0.1
"""Length of the embedding of a position; the features of a slice have length 1."""
_SEED = 0


class StyleAggregator(nn.Module):
    """Combines slice vectors of three planes into one style vector.

    Position and plane embedding; L2 normalisation; per plane, attention pooling by a learned query and LayerNorm;
    ``mean + alpha MLP(concatenation)``, where the MLP starts as the mean.

    Parameters
    ----------
    dimensions:
        ``D``, a multiple of :data:`HEADS`.
    alpha:
        Weight of the MLP.
    """

    def __init__(self, dimensions: int, alpha: float) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.alpha = alpha
        self.plane = nn.Parameter(0.02 * torch.randn(len(PLANES), dimensions))
        self.query = nn.Parameter(0.02 * torch.randn(len(PLANES), dimensions))
        self.attention = nn.MultiheadAttention(dimensions, HEADS, bias=False, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(dimensions) for _ in PLANES)
        self.expand = nn.Linear(len(PLANES) * dimensions, 2 * dimensions)
        self.reduce = nn.Linear(2 * dimensions, dimensions)
        self._start_as_mean()

    def forward(self, features: Tensor, planes: Tensor | None = None) -> Tensor:
        """Style ``(B, D)`` of slice vectors ``(B, 3, K, D)``; ``planes`` ``(B, 3)`` bool selects planes (None: all)."""
        pooled = self._pool(features)
        counts = features.new_ones(pooled.shape[:2]) if planes is None else planes.to(pooled)
        planes_that_count = counts.sum(1, keepdim=True)
        has_no_plane = planes_that_count[:, 0] == 0
        if has_no_plane.any():
            without_plane = has_no_plane.nonzero().flatten().tolist()
            received = f"no plane for volumes {without_plane}"
            raise DataError(received, "at least one plane per volume", "Select a plane.")
        kept = counts[..., None].bool()
        total = pooled.masked_fill(~kept, 0).sum(1)
        mean = total / planes_that_count
        filled = torch.where(kept, pooled, mean[:, None])
        expanded = self.expand(filled.flatten(1))
        reduced = self.reduce(F.gelu(expanded))
        return mean + self.alpha * reduced

    def _pool(self, features: Tensor) -> Tensor:
        """Vectors of the planes, ``(B, 3, D)``."""
        batch, planes, count, size = features.shape
        middles = torch.arange(count, device=features.device) + 0.5
        position = _POSITION * sinusoids(middles / count, size)
        unit = F.normalize(features, dim=-1)
        embedded = unit + position + self.plane[:, None]
        slices = F.normalize(embedded, dim=-1).flatten(0, 1)
        query = self.query.expand(batch, -1, -1)
        query = query.reshape(batch * planes, 1, size)
        attended, _ = self.attention(query, slices, slices, need_weights=False)
        pooled = attended.reshape(batch, planes, size)
        normalised = [norm(pooled[:, index]) for index, norm in enumerate(self.norms)]
        return torch.stack(normalised, dim=1)

    @torch.no_grad()
    def _start_as_mean(self) -> None:
        """Make the attention return its values unchanged, and the MLP ``gelu(m) - gelu(-m) = m``, the planes' mean."""
        unit = torch.eye(self.dimensions)
        self.attention.in_proj_weight[2 * self.dimensions :] = unit
        self.attention.out_proj.weight.copy_(unit)
        mean = unit.repeat(1, len(PLANES)) / len(PLANES)
        self.expand.weight.copy_(torch.cat([mean, -mean]))
        self.reduce.weight.copy_(torch.cat([unit, -unit], dim=1))
        for layer in (self.expand, self.reduce):
            layer.bias.zero_()


def sinusoids(places: Tensor, size: int) -> Tensor:
    """Position embedding of unit length ``(K, size)`` for places 0 to 1 along the brain (Vaswani et al., 2017).

    The brain is 24 positions of that paper long.
    """
    even = torch.arange(0, size, 2, device=places.device)
    rates = torch.exp(even * (-9.21034 / size))  # 10000 ** (-even / size)
    angles = 24 * places[:, None] * rates
    sines = angles.sin()
    cosines = angles.cos()
    waves = torch.cat([sines, cosines], dim=1)
    return F.normalize(waves[:, :size], dim=-1)


class TriPlanarStyleEncoder(nn.Module):
    """Computes style vectors of volumes; differentiable with respect to the volume.

    Parameters
    ----------
    backbone:
        Turns slices into vectors; stays in evaluation mode if it is frozen.
    config:
        ``slices``, ``alpha`` and ``checkpoint`` are used here.
    spacing_mm:
        Voxel edge of the volumes. Volumes finer than the backbone's pixels are averaged in three dimensions before
        slices are taken; coarser slices are interpolated. So a head gets about the same style on any grid.
    """

    def __init__(self, backbone: SliceBackbone, config: StyleConfig, spacing_mm: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.spacing_mm = spacing_mm
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self.aggregator = StyleAggregator(backbone.dimensions, config.alpha)

    def forward(self, volume: Tensor, mask: Tensor, planes: Tensor | None = None) -> Tensor:
        """Style vectors ``(B, D)``.

        Parameters
        ----------
        volume:
            ``(B, X, Y, Z)`` unit intensity; voxels outside the mask do not count.
        mask:
            ``(B, X, Y, Z)`` bool, the brain.
        planes:
            ``(B, 3)`` bool, planes to use; for a scan with thick slices see :meth:`planes_of`. None: all.

        Raises
        ------
        DataError
            If shapes do not match, a mask is empty, or a volume has no plane to use.
        """
        features = self.features(volume, mask)
        return self.aggregator(features, planes)

    def planes_of(self, affine: np.ndarray) -> Tensor:
        """Planes ``(1, 3)`` bool that do not cross thick slices of the scan with this affine ``(4, 4)``."""
        pixel_mm = max(self.spacing_mm, self.backbone.pixel_mm)
        return torch.from_numpy(sharp_planes(affine, pixel_mm))[None]

    def of_slices(self, images: Tensor, masks: Tensor) -> Tensor:
        """Style vectors ``(B, D)`` of chosen slices.

        ``images`` and ``masks`` are ``(B, 3, K, H, W)`` in the volumes' voxels, oriented as by
        :func:`mmh_ray.imaging.slices.along`.
        """
        vectors = []
        for index, plane in enumerate(PLANES):
            inside = masks[:, index]
            shown = images[:, index] * inside
            stacked = torch.stack([shown, inside], dim=2).flatten(0, 1)
            _, down, across = AXES[plane]
            if down > across:  # restore the axes' order in the volume, as in `features`
                stacked = stacked.mT
            size = self._in_pixels(stacked.shape[-2:])
            if size != list(stacked.shape[-2:]):
                stacked = F.interpolate(stacked, size=size, mode="bilinear", align_corners=False, antialias=True)
            of_plane = self._encode(stacked[:, :1], stacked[:, 1:])
            vectors.append(of_plane.unflatten(0, (len(images), -1)))
        return self.aggregator(torch.stack(vectors, dim=1))

    @property
    def _ratio(self) -> float:
        """Number of the backbone's pixels per voxel edge."""
        return self.spacing_mm / self.backbone.pixel_mm

    def _in_pixels(self, lengths: torch.Size) -> list[int]:
        """Convert lengths from voxels to the backbone's pixels."""
        return [round(length * self._ratio) for length in lengths]

    def features(self, volume: Tensor, mask: Tensor) -> Tensor:
        """Choose slices and return their vectors ``(B, 3, K, D)`` from the backbone."""
        _check(volume, mask)
        volume, mask = self._to_pixels(volume * mask, mask.to(volume))
        vectors = []
        for plane in PLANES:
            images, inside = self._slices(volume, mask, NORMAL[plane])
            of_plane = self._encode(images, inside)
            vectors.append(of_plane.unflatten(0, (len(volume), -1)))
        return torch.stack(vectors, dim=1)

    def _encode(self, images: Tensor, masks: Tensor) -> Tensor:
        """Vectors ``(N, D)`` of one plane's slices from the backbone; checkpointing drops its activations."""
        if self.config.checkpoint and torch.is_grad_enabled():
            return checkpoint(self.backbone, images, masks, use_reentrant=False)
        return self.backbone(images, masks)

    def train(self, mode: bool = True) -> TriPlanarStyleEncoder:
        """As in ``nn.Module``, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def describe(self) -> dict[str, Any]:
        """Facts about the encoder for a model bundle; :func:`check_same_encoder` compares them.

        ``slices`` is the number for whole volumes. :meth:`of_slices` accepts any number: stage 2 uses
        ``target.slabs_per_plane``, which is recorded among the settings of its training.
        """
        return {
            "backbone": self.backbone.name,
            "backbone_sha256": weights_hash(self.backbone),
            "aggregator_sha256": weights_hash(self.aggregator),
            "dimensions": self.backbone.dimensions,
            "pixel_mm": self.backbone.pixel_mm,
            "slices": self.config.slices,
            "alpha": self.config.alpha,
        }

    def _to_pixels(self, volume: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """If voxels are finer than the backbone's pixels, average the volume over the brain in each pixel."""
        if self._ratio > 0.99:
            return volume, mask
        size = [max(1, length) for length in self._in_pixels(volume.shape[1:])]
        share = F.interpolate(mask[:, None], size=size, mode="area")[:, 0]
        largest_share = share.amax((1, 2, 3), keepdim=True)
        least_share = largest_share.clamp_max(0.5)
        brain = (share >= least_share).to(volume)
        sums = F.interpolate(volume[:, None], size=size, mode="area")[:, 0]
        averaged = sums / share.clamp_min(1e-6)
        return averaged * brain, brain

    def _slices(self, volume: Tensor, mask: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Slices and masks ``(B K, 1, H, W)`` in the backbone's pixels, spread over the middle 80 % of each brain."""
        count = self.config.slices
        places = _MARGIN + (1 - 2 * _MARGIN) * (torch.arange(count) + 0.5) / count
        all_slices = volume.movedim(axis + 1, 1)
        all_masks = mask.movedim(axis + 1, 1)
        images = []
        masks = []
        for slices, inside in zip(all_slices, all_masks, strict=True):
            has_brain = inside.flatten(1).any(1)
            with_brain = has_brain.nonzero()[:, 0]
            ranks = (places * len(with_brain)).long()
            chosen = with_brain[ranks.to(with_brain.device)]
            images.append(slices[chosen])
            masks.append(inside[chosen])
        stacked = torch.stack([torch.cat(images), torch.cat(masks)], dim=1)
        if self._ratio > 1.01:
            size = self._in_pixels(stacked.shape[-2:])
            stacked = F.interpolate(stacked, size=size, mode="bilinear", align_corners=False)
        return stacked[:, :1], stacked[:, 1:]


def make_style_encoder(
    config: StyleConfig, spacing_mm: float, aggregator: Mapping[str, Tensor] | None = None
) -> TriPlanarStyleEncoder:
    """Make the configured encoder for volumes of a spacing, with a frozen backbone.

    The embedded backbone has a trained aggregator. For other backbones ``aggregator`` is the weights from
    :func:`mmh_ray.models.style.contrast.train_aggregator`; None starts as a mean over slices and planes.

    Raises
    ------
    ModelError
        If the backbone cannot be loaded (see :func:`mmh_ray.models.style.backbones.load_backbone`), or the aggregator
        does not fit.
    """
    encoder = TriPlanarStyleEncoder(load_backbone(config), config, spacing_mm)
    if aggregator:
        load_aggregator(encoder, aggregator)
    elif config.backbone == EMBEDDED:
        load_aggregator(encoder, embedded_weights("aggregator"))
    return encoder


def load_aggregator(encoder: TriPlanarStyleEncoder, state: Mapping[str, Tensor]) -> None:
    """Load the weights of an encoder's aggregator; ModelError if they do not fit."""
    try:
        encoder.aggregator.load_state_dict(dict(state))
    except RuntimeError as error:
        received = f"an aggregator with other weights ({' '.join(str(error).split())[:300]})"
        raise ModelError(received, "the aggregator of this style encoder", "Train the target with it.") from error


def check_same_encoder(recorded: dict[str, Any], configured: dict[str, Any]) -> None:
    """Raise ModelError if the configured encoder differs from the recorded one, except in the backbone's name.

    Compares two descriptions from :meth:`TriPlanarStyleEncoder.describe`. The name only tells where the weights came
    from.
    """
    differences = []
    for key, value in recorded.items():
        own_value = configured.get(key)
        if key != "backbone" and own_value != value:
            differences.append(f"{key} {own_value} for {value}")
    if not differences:
        return
    received = f"style encoder {configured.get('backbone')!r} ({', '.join(differences)})"
    expected = f"the one that the model was made with, {recorded.get('backbone')!r}"
    remedy = "Style vectors of two encoders are not comparable: set style as recorded, or train the adapter again."
    raise ModelError(received, expected, remedy)


def _check(volume: Tensor, mask: Tensor) -> None:
    if volume.ndim != 4 or volume.shape != mask.shape:
        received = f"volumes {tuple(volume.shape)} with masks {tuple(mask.shape)}"
        raise DataError(received, "two tensors of one shape (B, X, Y, Z)", "Stack volumes and masks the same way.")
    has_brain = mask.bool().flatten(1).any(1)
    empty = (~has_brain).nonzero().flatten().tolist()
    if empty:
        remedy = "Check the masks, or leave these volumes out."
        raise DataError(f"empty masks of volumes {empty}", "brain voxels in every mask", remedy)
