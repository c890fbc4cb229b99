"""Settings of stage 2: adapters for target sites."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval, Len
from pydantic import Field
from pydantic.dataclasses import dataclass

from mmh_ray.config.refusals import require
from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import Count, EachOnce, Place, Rate, Seed, Several, Text, Weight, Whole

SiteName = Annotated[Text, Field(pattern=r"^.*\S.*$", description="a name that is not empty")]


@dataclass(frozen=True, config=SETTINGS)
class TargetConfig(Section):
    """Stage 2: an adapter per target site and sequence on a frozen global model (`mmh train-target`)."""

    site: Annotated[Several[SiteName], Len(0, 10_000), EachOnce] = ()
    """Sites to train adapters for, in parallel; one name or a list."""
    images: Annotated[Whole, Interval(ge=0, le=10**6)] = 0
    """Target images per sequence, drawn by `target.seed` from the site's training and validation images; 0 uses all. 3
    are enough."""
    rank: Annotated[Whole, Interval(ge=1, le=256)] = 4
    """Rank of the low-rank updates of the convolutions (LoRA: Hu et al., ICLR 2022)."""
    steps: Count = 100
    """Largest number of optimiser steps."""
    slabs_per_plane: Annotated[Whole, Interval(ge=1, le=1000)] = 4
    """Slabs per plane in a group; a step has two groups of the site and one of a source site."""
    sources: Annotated[Whole, Interval(ge=2, le=10_000)] = 8
    """Images of other sites with the same sequence that are mapped to the target; about a quarter of them are only for
    validation."""
    restyles: Annotated[Whole, Interval(ge=1, le=1000)] = 1
    """Random styles with which each target image is processed by the global model."""
    learning_rate: Rate = 2e-3
    """Peak learning rate of AdamW; linear warm-up over a tenth of the steps, cosine decay."""
    reconstruction_weight: Weight = 1.0
    """Weight of the reconstruction loss of the site's own images (L1)."""
    gradient_weight: Weight = 0.5
    """Weight of the multi-scale gradient loss."""
    statistics_weight: Weight = 0.2
    """Weight of the distance of histogram, mean and standard deviation from the site's."""
    displacement_weight: Weight = 0.002
    """Weight of the style displacement loss, direction and magnitude; increased slowly."""
    last_steps: Annotated[Whole, Interval(ge=1, le=500)] = 10
    """Number of last sampling steps through which gradients flow."""
    validate_every: Count = 10
    """Steps between validations on images that are not used for training."""
    patience: Count = 3
    """Validations without a better score after which training stops; the best adapter is kept."""
    storage: Place = "runs"
    """Folder or URI below which `targets/SITE` is written."""
    seed: Seed = 0
    """Seed of styles, slices and noise."""

    def __post_init__(self) -> None:
        require(self.images == 0 or self.images >= 3, "target.images", self.images, "3 or more, or 0 for all")
