"""Settings of the denoiser, of its condition, and of the re-styling of the image that the condition is made from."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval, Len, MultipleOf
from pydantic import Field, StrictBool
from pydantic.dataclasses import dataclass

from mmh_ray.config.refusals import require
from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import EachOnce, Number, Several, Share, Text, Whole

Beta = Annotated[Number, Interval(ge=1e-8, le=0.999)]
Channels = Annotated[Whole, Interval(ge=8, le=2048), MultipleOf(8)]
Distance = Annotated[Whole, Interval(ge=1, le=512)]
Strength = Annotated[Number, Interval(ge=0, le=10)]
Suffix = Annotated[Text, Field(pattern=r"^[A-Za-z0-9]{1,64}$", description="a BIDS suffix such as T1w")]


@dataclass(frozen=True, config=SETTINGS)
class RestyleConfig(Section):
    """How strongly the copy of a volume is re-styled from which the condition is made (docs/method.md: augmented
    condition)."""

    curve: Strength = 0.5
    """Strength of the random monotone intensity curve; 0 leaves intensities alone."""
    gamma: Strength = 0.4
    """Standard deviation of log-gamma."""
    bias: Strength = 0.1
    """Standard deviation of the log of the smooth bias field."""
    blur_mm: Annotated[Number, Interval(ge=0, le=50)] = 2.0
    """Largest full width at half maximum of the added point spread, in mm."""
    noise: Strength = 0.04
    """Largest standard deviation of the added Rician noise, brain 99.5th percentile = 1."""
    coarsen: Share = 0.3
    """Probability of a coarser resolution (up to 2x) along one random axis."""


@dataclass(frozen=True, config=SETTINGS)
class ModelConfig(Section):
    """The denoiser and its condition."""

    sequences: Annotated[Several[Suffix], Len(1, 32), EachOnce] = ("T1w", "T2w")
    """BIDS suffixes that the model harmonizes; all others are refused."""
    distances: Annotated[Several[Distance], Len(1, 16)] = (1, 2, 4, 8, 16)
    """Distances, in voxels, of the differences that form the condition."""
    slab: Annotated[Whole, Interval(ge=1, le=63)] = 3
    """Neighbouring slices denoised together (odd)."""
    patch: Annotated[Whole, Interval(ge=1, le=8)] = 2
    """Side of the square of pixels that becomes one pixel of the network (pixel unshuffle)."""
    channels: Annotated[Several[Channels], Len(1, 6)] = (32, 64, 96)
    """Channels of the U-Net levels."""
    layers: Annotated[Whole, Interval(ge=1, le=8)] = 1
    """Residual blocks per level."""
    attention: StrictBool = False
    """Self-attention at the coarsest level."""
    train_timesteps: Annotated[Whole, Interval(ge=2, le=10_000)] = 1000
    """Length T of the diffusion schedule."""
    beta_start: Beta = 0.0015
    """First beta of the scaled-linear schedule."""
    beta_end: Beta = 0.0195
    """Last beta before the rescaling to zero terminal SNR."""

    def __post_init__(self) -> None:
        require(self.slab % 2 == 1, "model.slab", self.slab, "an odd number")
        require(self.beta_start <= self.beta_end, "model.beta_start", self.beta_start, "at most model.beta_end")
