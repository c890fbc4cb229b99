"""Settings for the limits of the quality checks."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from pydantic.dataclasses import dataclass

from mmh_ray.config.refusals import require
from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import Number, Share

Volume = Annotated[Number, Interval(ge=0, le=10**6)]
"""In ml."""


@dataclass(frozen=True, config=SETTINGS)
class QualityConfig(Section):
    """When a harmonized image is flagged for a person to look at, and when a scan is refused; docs/quality.md explains
    the values."""

    least_fit: Share = 0.2
    """Fit to the template, 0-1, below which a scan is refused: not an adult's head, or its header is wrong."""
    least_contrast: Annotated[Number, Interval(ge=-1000, le=1000)] = 0.1
    """Least difference of fluid from grey matter, in the direction of the sequence, and of white from grey matter in
    T1w; otherwise a scan is refused. In standard deviations of the deep brain."""
    least_preservation: Share = 0.85
    """Correlation of gradient magnitudes with the scan below which an image is flagged."""
    least_registration: Share = 0.3
    """Fit to the template, 0-1, below which an image is flagged."""
    least_coverage: Share = 0.97
    """Part of the aligned template's brain inside the field of view below which an image is flagged."""
    least_held: Share = 0.97
    """Part of the brain inside the working grid below which an image is flagged: the model saw only that part."""
    brain_ml: tuple[Volume, Volume] = (800.0, 2000.0)
    """Range of an adult's brain mask, in ml; an image outside it is flagged."""
    most_disagreement: Annotated[Number, Interval(ge=0, le=1000)] = 0.03
    """Standard deviation between the planes' estimates, in unit intensity, above which an image is flagged."""
    most_bright: Share = 0.01
    """Part of the brain above unit intensity 1.25 above which an image is flagged."""
    most_background: Annotated[Number, Interval(ge=0, le=1000)] = 0.2
    """Intensity of the air around the head, in unit intensity, above which an image is flagged: its intensities have an
    offset."""
    most_mask_offset_mm: Annotated[Number, Interval(ge=0, le=1000)] = 5.0
    """Distance of a given brain mask from the aligned template's brain above which an image is flagged."""
    most_second_head: Share = 0.2
    """Volume of the second largest part of the foreground, as a share of the largest, above which an image is
    flagged."""
    most_spikes: Annotated[Number, Interval(ge=0, le=1e9)] = 10.0
    """Number of isolated voxels far out of range in the brain above which an image is flagged."""
    most_wrapped: Annotated[Number, Interval(ge=0, le=1e12)] = 50.0
    """Number of steps from the brightest to the darkest value between neighbours, as from integer overflow, above which
    a scan is refused."""
    most_fill_step: Annotated[Number, Interval(ge=0, le=1e12)] = 5.0
    """Distance of interpolated fill values from the scan's values, in ranges of the scan, above which an image is
    flagged."""
    most_fluid_mm: Annotated[Number, Interval(ge=0, le=1000)] = 13.0
    """Radius of the largest ball of fluid in the brain above which an image is flagged: in larger ones contrast is
    lost."""

    def __post_init__(self) -> None:
        low, high = self.brain_ml
        require(low < high, "quality.brain_ml", self.brain_ml, "two volumes in ml, the smaller first")
