"""Base class of the style encoder's backbones: networks that turn a slice of a brain into a vector."""

from __future__ import annotations

from torch import nn


class SliceBackbone(nn.Module):
    """Maps ``forward(images (N, 1, H, W) in unit intensity, masks (N, 1, H, W) of 0 and 1) -> (N, D)``.

    Attributes
    ----------
    name:
        Value of ``style.backbone``.
    dimensions:
        ``D``.
    pixel_mm:
        Edge of its input pixels in mm.
    """

    name: str
    dimensions: int
    pixel_mm: float
