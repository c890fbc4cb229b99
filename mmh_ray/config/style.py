"""The style encoder."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from pydantic import StrictBool
from pydantic.dataclasses import dataclass

from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import Count, Named, Number, Place, Rate, Weight, Whole


@dataclass(frozen=True, config=SETTINGS)
class StyleConfig(Section):
    """The style encoder: which network looks at slices, and how its aggregator learns."""

    backbone: Place = "embedded"
    """`embedded` (ships inside the package); `hf-hub:OWNER/NAME`; a local folder with `open_clip_config.json` and weights; or the name of
    any open_clip model. Of open_clip models only the image tower is read."""
    weights: Place | None = None
    """For an open_clip name: a pretrained tag, a file, or `random` (fixed seed). The other backbones bring their own."""
    sha256: Named | None = None
    """SHA-256 that the weights file of an open_clip backbone must have, as it is logged; none takes any file."""
    slices: Annotated[Whole, Interval(ge=1, le=1000)] = 12
    """Slices per plane, spread over the brain, of whole volumes; stage 2 compares slice groups (`target.slabs_per_plane`)."""
    alpha: Annotated[Number, Interval(ge=0, le=1000)] = 0.2
    """Weight of the fusion network beside the mean over planes."""
    checkpoint: StrictBool = False
    """Gradient checkpointing: recompute the backbone's activations plane by plane instead of keeping them."""
    temperature: Annotated[Number, Interval(ge=1e-6, le=1000)] = 0.1
    """Temperature of the contrast between styles."""
    spread_weight: Weight = 1.0
    """Weight of the term that keeps the style vectors apart while the aggregator learns."""
    steps: Count = 200
    """Optimiser steps of the aggregator."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the aggregator."""
