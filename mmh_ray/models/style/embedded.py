"""The embedded backbone of the style encoder: a small network that ships inside the package.

Shapes: ``N`` slices, ``H W`` a slice, ``C`` channels of a feature map, ``D`` dimensions of the vector.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmh_ray.models.style.slice_backbone import SliceBackbone
from mmh_ray.shipped_weights import read_weights

EMBEDDED = "embedded"
"""Name of the backbone that ships inside the package."""
WEIGHTS = Path(__file__).parents[1] / "weights" / "style.safetensors"
"""Shipped weights of the backbone and its aggregator."""
PIXEL_MM = 3.0
QUANTILES = 24
"""Number of quantiles of a slice's brain in the input of the head."""
_MIDDLE = 0.5
"""Unit intensity that becomes 0 in the network's input."""
_SPREAD = 0.25
"""Difference of unit intensity that becomes 1 in the network's input."""


class EmbeddedBackbone(SliceBackbone):
    """A small convolutional net; its features are means and standard deviations over the brain, without positions.

    Contrast shows in the quantiles of the brain and in pointwise features of the intensities (a learned histogram).
    Noise and sharpness show in features at three resolutions.

    Parameters
    ----------
    dimensions:
        ``D``.
    width:
        Channels of the first level; the next two levels have twice and four times as many, the histogram twice.
    """

    def __init__(self, dimensions: int = 96, width: int = 12) -> None:
        super().__init__()
        self.name = EMBEDDED
        self.dimensions = dimensions
        self.pixel_mm = PIXEL_MM
        self.histogram = nn.Sequential(nn.Conv2d(1, 2 * width, 1), nn.ReLU())
        channels = (1, width, 2 * width, 4 * width)
        self.levels = nn.ModuleList(_level(before, after) for before, after in itertools.pairwise(channels))
        features = 2 * width + sum(channels[1:])
        statistics = 2 * features + QUANTILES
        self.head = nn.Sequential(
            nn.LayerNorm(statistics),
            nn.Linear(statistics, 2 * dimensions),
            nn.GELU(),
            nn.Linear(2 * dimensions, dimensions),
        )

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Vectors ``(N, D)`` of slices."""
        return self.head(self.statistics(images, masks))

    def statistics(self, images: Tensor, masks: Tensor) -> Tensor:
        """Input of the head, ``(N, S)``: quantiles over the brain; means and standard deviations of all features."""
        images = (images - _MIDDLE) / _SPREAD * masks
        statistics = [_quantiles(images, masks), _moments(self.histogram(images), masks)]
        features = images
        for number, level in enumerate(self.levels):
            if number:
                features = F.avg_pool2d(features, 2, ceil_mode=True)
                masks = F.avg_pool2d(masks, 2, ceil_mode=True)
            features = level(features)
            statistics.append(_moments(features, masks))
        return torch.cat(statistics, dim=1)


def _level(before: int, after: int) -> nn.Module:
    """Two convolutions from ``before`` to ``after`` channels."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(),
    )


def _quantiles(images: Tensor, masks: Tensor) -> Tensor:
    """Evenly spaced quantiles ``(N, Q)`` of the brain in ``(N, 1, H, W)`` images; zero for a slice without brain."""
    inside = masks.flatten(1) > 0.5
    count = inside.sum(1, keepdim=True)
    values = images.flatten(1).masked_fill(~inside, torch.inf)
    ranked = values.sort(1).values
    middles = torch.arange(QUANTILES, device=images.device) + 0.5
    probabilities = middles / QUANTILES
    ranks = (probabilities * count).long()
    chosen = ranked.gather(1, ranks)
    is_empty = ~inside.any(1, keepdim=True)
    return chosen.masked_fill(is_empty, 0)


def _moments(features: Tensor, masks: Tensor) -> Tensor:
    """Mean and standard deviation ``(N, 2 C)`` of ``(N, C, H, W)`` features over the brain."""
    inside = masks.flatten(1)
    pixels = inside.sum(1, keepdim=True)
    weights = inside / pixels.clamp_min(1e-3)
    # Flattened twice, as flattening once sums gradients in another order, which changes their last digits.
    mean = torch.einsum("ncp,np->nc", features.flatten(2), weights)
    squares = features.flatten(2).square()
    mean_square = torch.einsum("ncp,np->nc", squares, weights)
    variance = (mean_square - mean.square()).clamp_min(0)
    deviation = (variance + 1e-5).sqrt()
    return torch.cat([mean, deviation], dim=1)


def embedded_weights(part: str = "", weights: Path = WEIGHTS) -> dict[str, Tensor]:
    """Trained weights of the embedded backbone (``backbone.*``) and its aggregator (``aggregator.*``).

    ``part`` selects one of the two and removes its prefix. Raises as :func:`~mmh_ray.shipped_weights.read_weights`.
    """
    state = safetensors.torch.load(read_weights(weights))
    if not part:
        return state
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
