"""Settings of stage 1: training of the global model."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval
from pydantic import Field, StrictBool
from pydantic.dataclasses import dataclass

from mmh_ray.config.refusals import require
from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import Count, CountOrNone, Named, Number, Place, Rate, Seed, Share, Text, Weight, Whole

FileName = Annotated[
    Text,
    Field(
        pattern=r"^(?!\.{1,2}$)[^/\\]{1,200}$",
        description="a name of at most 200 characters without / and \\",
    ),
]


@dataclass(frozen=True, config=SETTINGS)
class TrainConfig(Section):
    """Stage 1 training (`mmh train-global`)."""

    steps: Count = 400
    """Optimiser steps."""
    start_from: Named | None = None
    """Model with the initial weights (`mmh-base`, a bundle folder, models:/NAME@ALIAS); None draws random ones. Its
    `model` settings must be the same; the unified domain is the new one."""
    volumes_per_step: Annotated[Whole, Interval(ge=1, le=10_000)] = 2
    """Slice groups per step over all workers, each of one volume; a multiple of twice the workers."""
    slabs_per_plane: Annotated[Whole, Interval(ge=1, le=1000)] = 2
    """Slabs per plane in a group."""
    learning_rate: Rate = 3e-3
    """Peak learning rate of AdamW, which trains the first and last layer, embeddings, biases and norms; linear warm-up,
    cosine decay."""
    matrix_learning_rate: Rate = 0.02
    """Peak learning rate of Muon, which trains all other weights; the same warm-up and decay."""
    warmup_steps: CountOrNone = 50
    """Steps of linear warm-up."""
    weight_decay: Annotated[Number, Interval(ge=0, le=10)] = 1e-4
    """Weight decay of both optimisers."""
    clip_norm: Annotated[Number, Interval(ge=1e-6, le=1e6)] = 1.0
    """Largest gradient norm; larger gradients are clipped."""
    ema_decay: Annotated[Number, Interval(ge=0, le=0.999999)] = 0.99
    """Decay of the exponential moving average of the weights."""
    simulated_share: Share = 1.0
    """Share of groups from simulated anatomies, with a canonical noise-free target. The others are from scans, with the
    teacher (the volume after histogram matching) as target. At 1, only sequences that cannot be simulated use it."""
    terminal_share: Annotated[Number, Interval(gt=0, le=1)] = 0.8
    """Share of samples trained at the last timestep (pure noise), where sampling starts."""
    gradient_weight: Weight = 0.5
    """Weight of the gradient loss."""
    style_weight: Weight = 0.05
    """Weight of the style losses on slice groups (W1 of histograms, mean, standard deviation)."""
    consistency_weight: Weight = 1.0
    """Weight of the squared difference between the outputs for scans of one person by two simulated scanners. The two
    are neighbours in the stream; a pair that is split between workers does not count."""
    domain_decay: Share = 0.95
    """Decay of the running unified-domain statistics."""
    validate_every: Count = 250
    """Steps between validations (fixed noise, fixed timesteps)."""
    checkpoint_every: Count = 250
    """Steps between checkpoints; a killed run loses at most this many."""
    validation_groups: Annotated[Whole, Interval(ge=1, le=100_000)] = 8
    """Slice groups per validation."""
    workers: Annotated[Whole, Interval(ge=1, le=10_000)] = 1
    """Data-parallel training workers."""
    use_gpu: StrictBool = False
    """One GPU per worker."""
    wait_s: Annotated[Number, Interval(ge=0, le=10**6)] = 600.0
    """Seconds that training waits for resources, after the loss of a node or while other jobs use the cluster. Then it
    fails with the reason. It waits only if not even one worker fits; otherwise it continues with fewer."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast precision; bf16 only on a GPU."""
    storage: Place = "runs"
    """Folder or URI for checkpoints."""
    run_name: FileName = "global"
    """Name of the run; the same name in the same storage resumes it."""
    seed: Seed = 0
    """Seed of initialisation, data order, styles and noise."""

    def __post_init__(self) -> None:
        require(
            self.volumes_per_step % self.workers == 0,
            "train.volumes_per_step",
            self.volumes_per_step,
            "a multiple of train.workers",
        )
        require(
            self.workers in self.worker_counts,
            "train.volumes_per_step",
            self.volumes_per_step,
            "a multiple of 2 x train.workers, because two scans of one person go to one worker, "
            "or train.consistency_weight=0",
        )
        require(
            self.precision == "fp32" or self.use_gpu,
            "train.precision",
            self.precision,
            "fp32 without a GPU",
        )

    @property
    def worker_counts(self) -> list[int]:
        """`workers` and all smaller numbers of workers that divide a step evenly; the largest first."""
        together = 2 if self.consistency_weight else 1
        return [count for count in range(self.workers, 0, -1) if self.volumes_per_step % (together * count) == 0]
