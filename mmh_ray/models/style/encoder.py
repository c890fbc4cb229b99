"""The tri-planar attention style encoder: a volume to one vector that tells how it was scanned and not who was.

Shapes: ``B`` volumes ``X Y Z``; 3 planes in the order of :data:`mmh_ray.imaging.slices.PLANES`; ``K`` slices a plane;
``D`` dimensions.

Source: arXiv 2601.08193. Ours differs in four points: slices are spread over each brain's own extent and not between
fixed indices; positions and features have known lengths before they are added, so that neither drowns the other; the
attention starts as a mean over slices; a scan's planes can be left out.
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
"""Part of a brain's slices at either end that is not looked at."""
_POSITION = 0.1
"""Length of a position's embedding; a slice's features have length 1."""
_SEED = 0


class StyleAggregator(nn.Module):
    """Slice vectors of three planes to one style vector.

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
        """Style ``(B, D)`` of slice vectors ``(B, 3, K, D)``; ``planes`` ``(B, 3)`` bool says which count (default
        all)."""
        pooled = self._pool(features)
        counts = features.new_ones(pooled.shape[:2]) if planes is None else planes.to(pooled)
        planes_that_count = counts.sum(1, keepdim=True)
        has_no_plane = planes_that_count[:, 0] == 0
        if has_no_plane.any():
            without_plane = has_no_plane.nonzero().flatten().tolist()
            received = f"no plane for volumes {without_plane}"
            raise DataError(received, "at least one plane per volume", "Let a plane count.")
        kept = counts[..., None].bool()
        total = pooled.masked_fill(~kept, 0).sum(1)
        mean = total / planes_that_count
        filled = torch.where(kept, pooled, mean[:, None])
        expanded = self.expand(filled.flatten(1))
        reduced = self.reduce(F.gelu(expanded))
        return mean + self.alpha * reduced

    def _pool(self, features: Tensor) -> Tensor:
        """Planes' vectors ``(B, 3, D)``."""
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
        """Attention: values pass as they are. MLP: ``gelu(m) - gelu(-m) = m`` for the mean ``m`` of the planes."""
        unit = torch.eye(self.dimensions)
        self.attention.in_proj_weight[2 * self.dimensions :] = unit
        self.attention.out_proj.weight.copy_(unit)
        mean = unit.repeat(1, len(PLANES)) / len(PLANES)
        self.expand.weight.copy_(torch.cat([mean, -mean]))
        self.reduce.weight.copy_(torch.cat([unit, -unit], dim=1))
        for layer in (self.expand, self.reduce):
            layer.bias.zero_()


def sinusoids(places: Tensor, size: int) -> Tensor:
    """Position embedding of unit length ``(K, size)`` of places 0 to 1 along the brain (Vaswani et al., 2017; 24 places
    apart)."""
    even = torch.arange(0, size, 2, device=places.device)
    rates = torch.exp(even * (-9.21034 / size))  # 10000 ** (-even / size)
    angles = 24 * places[:, None] * rates
    sines = angles.sin()
    cosines = angles.cos()
    waves = torch.cat([sines, cosines], dim=1)
    return F.normalize(waves[:, :size], dim=-1)


class TriPlanarStyleEncoder(nn.Module):
    """Volume to style vector, differentiable to the volume.

    Parameters
    ----------
    backbone:
        Turns slices into vectors; stays in evaluation mode where it is frozen.
    config:
        ``slices``, ``alpha`` and ``checkpoint`` count here.
    spacing_mm:
        Voxel edge of the volumes. Finer volumes than the backbone's pixels are averaged in three dimensions before
        slices are taken, coarser slices are interpolated: the same head gives about the same style at any grid.
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
            ``(B, X, Y, Z)`` unit intensity; what lies outside the mask does not count.
        mask:
            ``(B, X, Y, Z)`` bool, the brain.
        planes:
            ``(B, 3)`` bool, planes that count: for a scan with thick slices those of :meth:`planes_of`. Default all.

        Raises
        ------
        DataError
            Shapes that do not fit, an empty mask, a volume without any plane that counts.
        """
        features = self.features(volume, mask)
        return self.aggregator(features, planes)

    def planes_of(self, affine: np.ndarray) -> Tensor:
        """Planes ``(1, 3)`` bool that do not cross a scan's thick slices, by its own affine ``(4, 4)``."""
        pixel_mm = max(self.spacing_mm, self.backbone.pixel_mm)
        return torch.from_numpy(sharp_planes(affine, pixel_mm))[None]

    def of_slices(self, images: Tensor, masks: Tensor) -> Tensor:
        """Style vectors ``(B, D)`` of slices that were chosen already.

        ``images`` and ``masks`` ``(B, 3, K, H, W)``, in the volumes' own voxels, lie as
        :func:`mmh_ray.imaging.slices.along` gives them.
        """
        vectors = []
        for index, plane in enumerate(PLANES):
            inside = masks[:, index]
            shown = images[:, index] * inside
            stacked = torch.stack([shown, inside], dim=2).flatten(0, 1)
            _, down, across = AXES[plane]
            if down > across:  # a volume's own slices have their axes in the volume's order
                stacked = stacked.mT
            size = self._in_pixels(stacked.shape[-2:])
            if size != list(stacked.shape[-2:]):
                stacked = F.interpolate(stacked, size=size, mode="bilinear", align_corners=False, antialias=True)
            of_plane = self._encode(stacked[:, :1], stacked[:, 1:])
            vectors.append(of_plane.unflatten(0, (len(images), -1)))
        return self.aggregator(torch.stack(vectors, dim=1))

    @property
    def _ratio(self) -> float:
        """The backbone's pixels along one voxel."""
        return self.spacing_mm / self.backbone.pixel_mm

    def _in_pixels(self, lengths: torch.Size) -> list[int]:
        """Lengths in voxels as numbers of the backbone's pixels."""
        return [round(length * self._ratio) for length in lengths]

    def features(self, volume: Tensor, mask: Tensor) -> Tensor:
        """The backbone's vectors ``(B, 3, K, D)`` of the chosen slices, which a frozen backbone need make only once."""
        _check(volume, mask)
        volume, mask = self._to_pixels(volume * mask, mask.to(volume))
        vectors = []
        for plane in PLANES:
            images, inside = self._slices(volume, mask, NORMAL[plane])
            of_plane = self._encode(images, inside)
            vectors.append(of_plane.unflatten(0, (len(volume), -1)))
        return torch.stack(vectors, dim=1)

    def _encode(self, images: Tensor, masks: Tensor) -> Tensor:
        """The backbone's vectors ``(N, D)`` of one plane's slices; with checkpointing its activations are not kept."""
        if self.config.checkpoint and torch.is_grad_enabled():
            return checkpoint(self.backbone, images, masks, use_reentrant=False)
        return self.backbone(images, masks)

    def train(self, mode: bool = True) -> TriPlanarStyleEncoder:
        """As usual, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def describe(self) -> dict[str, Any]:
        """What a model bundle records of its style encoder; :func:`check_same_encoder` compares two of them.

        ``slices`` are those of whole volumes. :meth:`of_slices` takes as many as it is given: stage 2 gives
        ``target.slabs_per_plane``, which the bundle records among the settings of its training.
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
        """Average a volume of finer voxels than the backbone's pixels over the brain's part of each pixel."""
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
        """``(B K, 1, H, W)`` slices and masks at the backbone's size of pixel, spread over the middle 80 % of each
        brain."""
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
    """The configured encoder for volumes of a spacing, its backbone frozen.

    The embedded backbone comes with its trained aggregator. Another backbone's is ``aggregator``, the weights that
    :func:`mmh_ray.models.style.contrast.train_aggregator` made; without, it starts as a mean over slices and planes.

    Raises
    ------
    ModelError
        If the backbone cannot be had (see :func:`mmh_ray.models.style.backbones.load_backbone`), or the aggregator is
        another's.
    """
    encoder = TriPlanarStyleEncoder(load_backbone(config), config, spacing_mm)
    if aggregator:
        load_aggregator(encoder, aggregator)
    elif config.backbone == EMBEDDED:
        load_aggregator(encoder, embedded_weights("aggregator"))
    return encoder


def load_aggregator(encoder: TriPlanarStyleEncoder, state: Mapping[str, Tensor]) -> None:
    """Give an encoder's aggregator its weights; ModelError where they are another's."""
    try:
        encoder.aggregator.load_state_dict(dict(state))
    except RuntimeError as error:
        received = f"an aggregator with other weights ({' '.join(str(error).split())[:300]})"
        raise ModelError(received, "one of this style encoder", "Train the target with it.") from error


def check_same_encoder(recorded: dict[str, Any], configured: dict[str, Any]) -> None:
    """Refuse an encoder other than the one a model was made with; where its weights came from (its name) does not
    matter.

    Raises
    ------
    ModelError
        Names what differs between the two descriptions.
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
    remedy = "Style vectors of two encoders cannot be compared: configure style as recorded, or train the adapter anew."
    raise ModelError(received, expected, remedy)


def _check(volume: Tensor, mask: Tensor) -> None:
    if volume.ndim != 4 or volume.shape != mask.shape:
        received = f"volumes {tuple(volume.shape)} with masks {tuple(mask.shape)}"
        raise DataError(received, "two tensors of one shape (B, X, Y, Z)", "Stack volumes and their masks alike.")
    has_brain = mask.bool().flatten(1).any(1)
    empty = (~has_brain).nonzero().flatten().tolist()
    if empty:
        remedy = "Check the masks, or leave these volumes out."
        raise DataError(f"empty masks of volumes {empty}", "brain voxels in every mask", remedy)
