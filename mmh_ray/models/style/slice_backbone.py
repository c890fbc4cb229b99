"""What every backbone of the style encoder is: a network that turns one slice of a brain into one vector."""

from __future__ import annotations

from torch import nn


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
