"""A small U-Net that learns tissues at one site, to be tried at the others: what a user's own network would make of harmonized scans.

Works on axial slices of 3 mm pixels, 80 a side. Needs torch and diffusers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from mmh_ray.config import GridConfig
from mmh_ray.evaluation.metrics import scale_by_percentiles
from mmh_ray.imaging.grid import from_grid, to_grid, working_affine

SPACING_MM = 3.0
SHAPE = (80, 80, 64)
"""Grid of the network, right, anterior and superior: 240 by 240 by 192 mm."""

_BATCH = 8
_RATE = 3e-3
_CHANNELS = (8, 16, 32)


@dataclass(frozen=True)
class Example:
    """A scan to learn from.

    Attributes
    ----------
    image, mask:
        ``(I, J, K)`` intensities in any units and bool brain.
    labels:
        ``(I, J, K)`` integers: 0 background, else 1 + the place in :data:`mmh_ray.evaluation.segmentation.TISSUES`.
    affine:
        ``(4, 4)`` voxels to millimetres.
    """

    image: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class TissueUNet:
    """A trained segmenter, made by :func:`train_unet`."""

    network: nn.Module

    def segment(self, image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """``(3, I, J, K)`` float32 probabilities, zero outside the mask, as of ``segmentation.segment_tissues``."""
        grid, slices = _slices(image, mask, affine)
        with torch.inference_mode():
            logits = torch.cat([_logits(self.network, batch) for batch in torch.from_numpy(slices).split(_BATCH)])
        coarse = torch.softmax(logits, dim=1).numpy().transpose(1, 2, 3, 0)
        found = np.stack([from_grid(tissue, grid, affine, image.shape) for tissue in coarse]) * mask
        return found / np.maximum(found.sum(axis=0), 1e-6)


def train_unet(examples: Iterable[Example], seed: int = 0, steps: int = 200) -> TissueUNet:
    """Learn tissues from the scans of one site.

    ``diffusers.UNet2DModel`` of 8, 16 and 32 channels (Ronneberger et al. 2015), cross-entropy inside the brain, Adam with the rate
    falling to zero. Every scan is scaled by its own 1st and 99th percentile and nothing else is changed or augmented: the network knows
    one site's look, and how far it carries to the other sites' scans is the measure (Dice and volume error against the labels, higher
    and lower better). The same scans and seed give the same network; the global random state is left as it was.

    Cannot see: what a segmenter made robust by augmentation would not mind; structures below 3 mm.
    """
    slices, labels = zip(*(_training_slices(example) for example in examples), strict=True)
    x, y = torch.from_numpy(np.concatenate(slices)), torch.from_numpy(np.concatenate(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network()
        _fit(network, x, y, steps)
    return TissueUNet(network.eval())


def _network() -> nn.Module:
    network: Any = UNet2DModel(  # whose types the checker cannot see
        in_channels=1,
        out_channels=3,
        block_out_channels=_CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        add_attention=False,
    )
    return network


def _fit(network: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (_BATCH,))
        loss = F.cross_entropy(_logits(network, x[rows]), y[rows], ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _logits(network: nn.Module, slices: Tensor) -> Tensor:
    return network(slices[:, None], 0).sample


def _training_slices(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Slices that show brain, ``(n, 80, 80)``, and their labels, −1 where nothing is to be learnt."""
    grid, slices = _slices(example.image, example.mask, example.affine)
    shares = [to_grid(example.labels == label, example.affine, grid, SHAPE) for label in (1, 2, 3)]
    inside = to_grid(example.mask, example.affine, grid, SHAPE) > 0.5
    labels = np.moveaxis(np.where(inside, np.argmax(shares, axis=0), -1), 2, 0)
    shown = (labels >= 0).any(axis=(1, 2))
    return slices[shown], labels[shown].astype(np.int64)


def _slices(image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Affine of the network's grid, and the scan on it as float32 slices ``(64, 80, 80)``, zero outside the brain."""
    grid = working_affine(affine, mask, GridConfig(spacing_mm=SPACING_MM, shape=SHAPE))
    scaled = np.where(mask, scale_by_percentiles(image, mask), 0)
    return grid, np.ascontiguousarray(np.moveaxis(to_grid(scaled, affine, grid, SHAPE), 2, 0), np.float32)
