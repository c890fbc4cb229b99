"""Batch inference."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval, Len
from pydantic.dataclasses import dataclass

from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import EachOnce, Number, Seed, Several, Share, Whole

Plane = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True, config=SETTINGS)
class HarmonizeConfig(Section):
    """Batch inference (`mmh harmonize`); `mmh train-target` trains adapters on the same sampling."""

    steps: Annotated[Whole, Interval(ge=1, le=500)] = 1
    """Sampling steps from noise (DDIM)."""
    inversion_depth: Annotated[Whole, Interval(ge=0, le=500)] = 0
    """DDIM inversion steps from the source instead of noise, as published; 0 starts from noise."""
    fusion: Literal["mean", "median"] = "mean"
    """How the planes' estimates of a voxel are fused."""
    planes: Annotated[Several[Plane], Len(1, 3), EachOnce] = ("axial", "coronal", "sagittal")
    """Planes to run."""
    detail: Literal["project", "model"] = "project"
    """`project`: curve and field from the model, all else from the scan; `model`: the model's image itself."""
    space: Literal["native", "template"] = "native"
    """Grid of the harmonized image: the scan's own, or the 1 mm grid of ICBM-152 2009a (symmetric)."""
    intensity: Literal["unit", "source"] = "unit"
    """`unit`: about 1 for bright tissue at every site; `source`: `unit * (high - low) + low`, with the scan's intensities `low` and `high`
    at unit intensity 0 and 1, so that its scale is kept and only its contrast is that of the unified domain."""
    batch_slabs: Annotated[Whole, Interval(ge=1, le=100_000)] = 32
    """Slabs per forward pass."""
    seed: Seed = 0
    """Seed of the one noise tensor that every volume shares."""
    slots: Annotated[Whole, Interval(ge=0, le=100_000)] = 0
    """Actors; 0 takes as many as the GPUs hold, or one per two CPUs."""
    gpus_per_actor: Share | None = None
    """Part of a GPU that an actor takes: 0.25 puts four on one, 0 keeps them off GPUs. None: a whole one where the cluster has any at the
    start, else none."""
    images_per_actor: Annotated[Whole, Interval(ge=0, le=64)] = 0
    """Images that an actor has at a time: while one has the model, others are read, prepared and written. 0: one per CPU of its part of
    the cluster, at most 4. Each takes memory."""
    wait_s: Annotated[Number, Interval(ge=1, le=10**6)] = 600.0
    """Seconds that a run without any actor waits for a place for one, before its images fail with the reason."""
    memory_gb: Annotated[Number, Interval(ge=0, le=1e6)] = 0.0
    """Gigabytes (10^9 bytes) that a run may take on each machine: fewer images are worked on at a time, and one that does not fit alone
    fails; 0 takes what is free."""
    timeout_s: Annotated[Number, Interval(ge=1e-3, le=1e8)] = 600.0
    """Seconds that an image may take: then its actor is ended and the image fails; the others go on."""
