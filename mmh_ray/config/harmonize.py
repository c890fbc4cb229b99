"""Settings for batch inference."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval, Len
from pydantic.dataclasses import dataclass

from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import EachOnce, Number, Seed, Several, Share, Whole

Plane = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True, config=SETTINGS)
class HarmonizeConfig(Section):
    """Batch inference (`mmh harmonize`); `mmh train-target` trains adapters with the same sampling."""

    steps: Annotated[Whole, Interval(ge=1, le=500)] = 1
    """Sampling steps from noise (DDIM)."""
    inversion_depth: Annotated[Whole, Interval(ge=0, le=500)] = 0
    """DDIM inversion steps from the source instead of noise, as published; 0 starts from noise."""
    fusion: Literal["mean", "median"] = "mean"
    """How the planes' estimates of a voxel are fused."""
    planes: Annotated[Several[Plane], Len(1, 3), EachOnce] = ("axial", "coronal", "sagittal")
    """Planes to run."""
    detail: Literal["project", "model"] = "project"
    """`project`: intensity curve and smooth field from the model, everything else from the scan; `model`: the model's
    image."""
    space: Literal["native", "template"] = "native"
    """Grid of the harmonized image: the scan's own, or the 1 mm grid of ICBM-152 2009a (symmetric)."""
    intensity: Literal["unit", "source"] = "unit"
    """`unit`: about 1 for bright tissue at every site; `source`: `unit * (high - low) + low`, where `low` and `high`
    are the scan's intensities at unit intensity 0 and 1. So only the contrast is changed, not the scan's scale."""
    batch_slabs: Annotated[Whole, Interval(ge=1, le=100_000)] = 32
    """Slabs per forward pass."""
    seed: Seed = 0
    """Seed of the noise tensor that all volumes share."""
    slots: Annotated[Whole, Interval(ge=0, le=100_000)] = 0
    """Number of actors; 0 starts as many as fit on the GPUs, or one per two CPUs."""
    gpus_per_actor: Share | None = None
    """Part of a GPU that an actor takes: 0.25 puts four on one, 0 uses no GPU. None: a whole one if the cluster has any
    at the start of the run, else none."""
    images_per_actor: Annotated[Whole, Interval(ge=0, le=64)] = 0
    """Images that an actor works on at a time: while one is in the model, others are read, prepared and written. Each
    takes memory. 0: one per CPU of the actor's share of the cluster, at most 4."""
    wait_s: Annotated[Number, Interval(ge=1, le=10**6)] = 600.0
    """Seconds that a run without any actor waits for room for one, before its images fail with the reason."""
    memory_gb: Annotated[Number, Interval(ge=0, le=1e6)] = 0.0
    """Gigabytes (10^9 bytes) that a run may use on each machine; 0 uses what is free. A limit reduces the images worked
    on at a time; an image that does not fit alone fails."""
    timeout_s: Annotated[Number, Interval(ge=1e-3, le=1e8)] = 600.0
    """Seconds that an image may take. After that its actor is stopped and the image fails; other images continue."""
