"""Settings of the style encoder."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from pydantic import StrictBool
from pydantic.dataclasses import dataclass

from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import Count, Named, Number, Place, Rate, Weight, Whole


@dataclass(frozen=True, config=SETTINGS)
class StyleConfig(Section):
    """The style encoder: its backbone network for slices, and the training of its aggregator."""

    backbone: Place = "embedded"
    """`embedded` (shipped with the package); `hf-hub:OWNER/NAME`; a local folder with `open_clip_config.json` and
    weights; or the name of an open_clip model. Only the image tower of open_clip models is read."""
    weights: Place | None = None
    """For an open_clip name: a pretrained tag, a file, or `random` (fixed seed).
    Other backbones include their weights."""
    sha256: Named | None = None
    """SHA-256 that the weights file of an open_clip backbone must have (see the log); None accepts any file."""
    slices: Annotated[Whole, Interval(ge=1, le=1000)] = 12
    """Slices per plane for a whole volume, spread over the brain; stage 2 compares slice groups
    (`target.slabs_per_plane`)."""
    alpha: Annotated[Number, Interval(ge=0, le=1000)] = 0.2
    """Weight of the fusion network, which is added to the mean over planes."""
    checkpoint: StrictBool = False
    """Gradient checkpointing: recompute the backbone's activations plane by plane instead of storing them."""
    temperature: Annotated[Number, Interval(ge=1e-6, le=1000)] = 0.1
    """Temperature of the contrastive loss between styles."""
    spread_weight: Weight = 1.0
    """Weight of the loss that keeps the style vectors apart while the aggregator is trained."""
    steps: Count = 200
    """Optimiser steps of the aggregator."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the aggregator."""
