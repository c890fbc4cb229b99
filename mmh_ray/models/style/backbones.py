"""Backbones of the style encoder: networks that turn one slice of a brain into one vector.

Shapes: ``N`` slices, ``H W`` a slice, ``D`` dimensions of the vector. Every backbone says at which size of pixel it looks.
"""

from __future__ import annotations

import hashlib
import itertools
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmh_ray.config import StyleConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.bundle_files import parse_weights

EMBEDDED = "embedded"
"""Name of the backbone that ships inside the package."""


QUANTILES = 24
"""Quantiles of a slice's brain that the embedded backbone sees."""


class SliceBackbone(nn.Module):
    """One slice to one vector: ``forward(images (N, 1, H, W) unit intensity, masks (N, 1, H, W) 0 or 1) -> (N, D)``.

    Attributes
    ----------
    name:
        As configured.
    dimensions:
        ``D``.
    pixel_mm:
        Edge, in mm, of the pixels that it wants.
    """

    name: str
    dimensions: int
    pixel_mm: float


class EmbeddedBackbone(SliceBackbone):
    """A small convolutional net whose features are means and standard deviations over the brain, never places.

    The brain's quantiles and the grey levels' own pointwise features, a learned histogram, tell contrast; features of three resolutions
    tell noise and sharpness.

    Parameters
    ----------
    dimensions:
        ``D``.
    width:
        Channels of the first level; the next two have twice and four times as many, the histogram twice.
    """

    def __init__(self, dimensions: int = 96, width: int = 12) -> None:
        super().__init__()
        self.name, self.dimensions, self.pixel_mm = EMBEDDED, dimensions, 3.0
        self.histogram = nn.Sequential(nn.Conv2d(1, 2 * width, 1), nn.ReLU())
        sizes = (1, width, 2 * width, 4 * width)
        self.levels = nn.ModuleList(_level(before, after) for before, after in itertools.pairwise(sizes))
        statistics = 2 * (2 * width + sum(sizes[1:])) + QUANTILES
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
        """What the head sees: ``(N, S)`` quantiles over the brain, means and standard deviations of all levels' features."""
        features = images = (images - 0.5) / 0.25 * masks
        statistics = [_quantiles(images, masks), _statistics(self.histogram(images), masks)]
        for number, level in enumerate(self.levels):
            if number:
                features, masks = F.avg_pool2d(features, 2, ceil_mode=True), F.avg_pool2d(masks, 2, ceil_mode=True)
            features = level(features)
            statistics.append(_statistics(features, masks))
        return torch.cat(statistics, dim=1)


def _level(before: int, after: int) -> nn.Module:
    first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def _quantiles(images: Tensor, masks: Tensor) -> Tensor:
    """Quantiles ``(N, Q)``, evenly spaced, of the brain's pixels of ``(N, 1, H, W)`` images; zero where a slice shows no brain."""
    inside = masks.flatten(1) > 0.5
    ranked = images.flatten(1).masked_fill(~inside, torch.inf).sort(1).values
    places = (torch.arange(QUANTILES, device=images.device) + 0.5) / QUANTILES
    chosen = ranked.gather(1, (places * inside.sum(1, keepdim=True)).long())
    return chosen.masked_fill(~inside.any(1, keepdim=True), 0)


def _statistics(features: Tensor, masks: Tensor) -> Tensor:
    """Mean and standard deviation ``(N, 2 C)`` of ``(N, C, H, W)`` features over the brain."""
    weights = masks.flatten(1) / masks.flatten(1).sum(1, keepdim=True).clamp_min(1e-3)
    mean = torch.einsum("ncp,np->nc", features.flatten(2), weights)
    square = torch.einsum("ncp,np->nc", features.flatten(2).square(), weights)
    return torch.cat([mean, ((square - mean.square()).clamp_min(0) + 1e-5).sqrt()], dim=1)


def load_backbone(config: StyleConfig) -> SliceBackbone:
    """The backbone that ``config`` names, in evaluation mode and frozen.

    Raises
    ------
    ModelError
        Unknown name, missing folder or weights, weights of another checksum, damaged weights or such as do not fit.
    """
    backbone: SliceBackbone
    if config.backbone == EMBEDDED:
        backbone = _embedded(config)
    else:
        from mmh_ray.models.style.open_clip import (
            open_clip_backbone,
        )  # seconds of import that the embedded one need not pay

        backbone = open_clip_backbone(config)
    return backbone.eval().requires_grad_(False)


def embedded_weights() -> dict[str, Tensor]:
    """Trained weights of the embedded backbone and its aggregator (``backbone.*``, ``aggregator.*``)."""
    place = resources.files("mmh_ray.models") / "weights" / "style.safetensors"
    return parse_weights(place.read_bytes(), str(place), "Install mmh-ray again.")


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of a module's parameters and buffers: the same wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _embedded(config: StyleConfig) -> SliceBackbone:
    for key in ("weights", "sha256"):
        if getattr(config, key) is not None:
            remedy = f"Leave style.{key} out, or name another style.backbone."
            raise ModelError(f"style.{key}={getattr(config, key)!r} with the embedded backbone", "none", remedy)
    state = {
        name.removeprefix("backbone."): t for name, t in embedded_weights().items() if name.startswith("backbone.")
    }
    backbone = EmbeddedBackbone()
    backbone.load_state_dict(state)
    return backbone
