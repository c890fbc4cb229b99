"""Settings for simulated archives and simulated people."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from pydantic.dataclasses import dataclass

from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import CountOrNone, Number, Place, Seed, Share, Whole


@dataclass(frozen=True, config=SETTINGS)
class PhantomConfig(Section):
    """A simulated multi-site archive with known truth (`mmh phantom`)."""

    sites: Annotated[Whole, Interval(ge=1, le=8)] = 4
    """Scanners to simulate, at most 8."""
    subjects_per_site: CountOrNone = 8
    """Subjects scanned at one site only."""
    travelers: CountOrNone = 6
    """Subjects scanned at every site; never used for training."""
    spacing_mm: Annotated[Number, Interval(ge=0.5, le=8)] = 3.0
    """Isotropic voxel edge in mm."""
    lesions: Share = 0.25
    """Share of subjects with white-matter lesions, 0-1."""
    seed: Seed = 0
    """Same seed, same bytes."""


@dataclass(frozen=True, config=SETTINGS)
class SimulationConfig(Section):
    """Simulated people and scanners for training without a cohort (`mmh train-global` without PREPARED)."""

    label_maps: Place | None = None
    """Folder of whole-head label maps `*_dseg.nii.gz` with FreeSurfer's labels, and labels 502 to 530 outside the brain
    as in SynthSeg. The last fifth of them, by name, is for validation. Without a folder, people are simulated from
    ICBM-152, which has no deep nuclei."""
