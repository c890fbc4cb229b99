"""Settings for the manifest, the working grid and the preparation of volumes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Interval, Len, MultipleOf
from pydantic import StrictBool
from pydantic.dataclasses import dataclass

from mmh_ray.config.refusals import require
from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import Number, Place, Seed, Several, Share, Whole

MOST_VOXELS = 512**3
"""Most voxels of the working grid: 16 times those of a head at 1 mm."""

Side = Annotated[Whole, Interval(ge=8, le=1024), MultipleOf(8)]


@dataclass(frozen=True, config=SETTINGS)
class ManifestConfig(Section):
    """The table of images (`mmh manifest`)."""

    site_pattern: Place | None = None
    """Regular expression with a group `site`, searched in the relative path if no table or sidecar names the site."""
    val_fraction: Share = 0.1
    """Share of subjects in split `val`."""
    test_fraction: Share = 0.1
    """Share of subjects in split `test`. Subjects scanned at more than one site are always `test`."""
    seed: Seed = 0
    """Seed of the split by subject."""

    def __post_init__(self) -> None:
        total = self.val_fraction + self.test_fraction
        require(total < 1, "manifest.val_fraction + manifest.test_fraction", total, "shares below 1 in all")


@dataclass(frozen=True, config=SETTINGS)
class GridConfig(Section):
    """The working grid: canonical RAS axes, isotropic, one shape for every volume."""

    spacing_mm: Annotated[Number, Interval(ge=0.1, le=30)] = 3.0
    """Voxel edge in mm."""
    shape: tuple[Side, Side, Side] = (56, 72, 56)
    """Voxels along R, A and S."""

    def __post_init__(self) -> None:
        fits = math.prod(self.shape) <= MOST_VOXELS
        require(fits, "grid.shape", self.shape, f"at most {MOST_VOXELS} voxels")


@dataclass(frozen=True, config=SETTINGS)
class PrepareConfig(Section):
    """From any scan to the working grid (`mmh prepare`; `mmh harmonize` runs the same steps).

    `mmh harmonize` takes `crop_neck`, `register` and `skull` from its own configuration. Settings that determine
    intensities come from the model; other values are refused.
    """

    crop_neck: StrictBool = True
    """Ignore the neck, 190 mm below the top of the head, if the brain has to be found by the template. Images keep
    their shape."""
    register: StrictBool = True
    """Align the working grid with the template's axes if a head is tilted (rotation only: a brain keeps its size)."""
    skull: Literal["keep", "strip"] = "keep"
    """`strip`: harmonized images are zero outside the brain mask."""
    n4: StrictBool = True
    """N4 bias-field correction (Tustison 2010) through SimpleITK."""
    n4_iterations: Annotated[Several[Annotated[Whole, Interval(ge=0, le=1000)]], Len(1, 8)] = (30, 20, 10)
    """Iterations per fitting level."""
    upper_percentile: Annotated[Number, Interval(gt=50, le=100)] = 99.5
    """Percentile of the brain that is mapped to 1; zero stays zero."""
    shard_volumes: Annotated[Whole, Interval(ge=1, le=10_000)] = 64
    """Volumes per Parquet shard."""
