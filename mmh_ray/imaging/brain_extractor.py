"""A small 3-D network that finds the brain in a head of any contrast; trained on simulated heads alone (`mmh_ray.simulation.train_brain`).

Random contrasts of label maps make it blind to sequence and scanner (Billot et al., SynthSeg, MedIA 2023; Hoopes et al., SynthStrip,
NeuroImage 2022). As there, it predicts the distance to the brain's surface, whose zero is found between voxels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

CHANNELS = (16, 32, 48, 64)
SPACING_MM = 3.0
"""Voxel edge of what the network sees."""
MULTIPLE = 2 ** (len(CHANNELS) - 1)
"""Every axis that the network sees is a multiple of this."""
REACH_MM = 9.0
"""Distances beyond are as good as this one."""
_BRIGHT_PERCENTILE = 98


class BrainExtractor(nn.Module):
    """A U-Net of 3-D convolutions: ``(B, 1, X, Y, Z)`` scaled head to ``(B, 1, X, Y, Z)`` distance in mm, positive inside the brain.

    Each axis must be a multiple of :data:`MULTIPLE`.
    """

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        before = 1
        for width in channels:
            self.down.append(_block(before, width))
            before = width
        self.up = nn.ModuleList()
        for width in reversed(channels[:-1]):
            self.up.append(_block(before + width, width))
            before = width
        self.last = nn.Conv3d(before, 1, 1)

    def forward(self, head: Tensor) -> Tensor:
        """Distance in mm, at most :data:`REACH_MM` either way."""
        skipped = []
        features = head
        for block in self.down[:-1]:
            features = block(features)
            skipped.append(features)
            features = nn.functional.max_pool3d(features, 2)
        features = self.down[-1](features)
        for block in self.up:
            features = nn.functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = block(torch.cat([features, skipped.pop()], dim=1))
        return REACH_MM * torch.tanh(self.last(features))


def _block(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.SiLU(),
        nn.Conv3d(width, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.SiLU(),
    )


def scaled_head(image: np.ndarray) -> np.ndarray:
    """A head ``(X, Y, Z)`` over the level of its bright tissue, float32, 0 to 2; the same for simulated and real ones."""
    bright = image[image > image.mean()]
    level = float(np.percentile(bright, _BRIGHT_PERCENTILE)) if bright.size else 1.0
    return np.clip(image / max(level, 1e-6), 0, 2).astype(np.float32)
