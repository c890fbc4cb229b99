"""Stage 1: training of the global model."""

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
    """Model whose weights are the first (`mmh-base`, a bundle folder, models:/NAME@ALIAS); None draws them. Its `model` settings must be
    these; the unified domain is the new one."""
    volumes_per_step: Annotated[Whole, Interval(ge=1, le=10_000)] = 2
    """Slice groups, each of one volume, over all workers in a step; a multiple of twice the workers."""
    slabs_per_plane: Annotated[Whole, Interval(ge=1, le=1000)] = 2
    """Slabs per plane in a group."""
    learning_rate: Rate = 3e-3
    """Peak learning rate of AdamW, which trains the first and last layer, embeddings, biases and norms; linear warm-up, cosine decay."""
    matrix_learning_rate: Rate = 0.02
    """Peak learning rate of Muon, which trains the weights between; the same warm-up and decay."""
    warmup_steps: CountOrNone = 50
    """Steps of linear warm-up."""
    weight_decay: Annotated[Number, Interval(ge=0, le=10)] = 1e-4
    """Weight decay of both."""
    clip_norm: Annotated[Number, Interval(ge=1e-6, le=1e6)] = 1.0
    """Gradient norm limit."""
    ema_decay: Annotated[Number, Interval(ge=0, le=0.999999)] = 0.99
    """Decay of the exponential moving average of the weights."""
    simulated_share: Share = 1.0
    """Share of groups that show simulated anatomies with a canonical noise-free target; the rest has the teacher's, the volume
    itself after histogram matching. At 1 the teacher serves only sequences that cannot be simulated."""
    terminal_share: Annotated[Number, Interval(gt=0, le=1)] = 0.8
    """Share of samples trained at the last timestep (pure noise), where sampling starts."""
    gradient_weight: Weight = 0.5
    """Weight of the gradient loss."""
    style_weight: Weight = 0.05
    """Weight of the style losses on slice groups (W1 of histograms, mean, standard deviation)."""
    consistency_weight: Weight = 1.0
    """Weight of the squared difference between what two simulated scanners' scans of one person become. Pairs lie side by side in the
    stream; one whose halves fall to different workers does not count."""
    domain_decay: Share = 0.95
    """Decay of the running unified-domain statistics."""
    validate_every: Count = 250
    """Steps between validations (fixed noise, fixed timesteps)."""
    checkpoint_every: Count = 250
    """Steps between checkpoints; a killed run loses at most this many."""
    validation_groups: Annotated[Whole, Interval(ge=1, le=100_000)] = 8
    """Slice groups in a validation."""
    workers: Annotated[Whole, Interval(ge=1, le=10_000)] = 1
    """Data-parallel training workers."""
    use_gpu: StrictBool = False
    """One GPU per worker."""
    wait_s: Annotated[Number, Interval(ge=0, le=10**6)] = 600.0
    """Seconds that training waits for room after a node was lost, or while other jobs hold the cluster, before it ends with the reason. It
    waits only where not even one worker fits; otherwise it goes on with fewer."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast precision; bf16 only on GPU."""
    storage: Place = "runs"
    """Folder or URI for checkpoints."""
    run_name: FileName = "global"
    """Runs of the same name in the same storage resume."""
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
            "a multiple of 2 x train.workers, as two scans of one person go to one worker, or train.consistency_weight=0",
        )
        require(
            self.precision == "fp32" or self.use_gpu,
            "train.precision",
            self.precision,
            "fp32 without a GPU",
        )

    @property
    def worker_counts(self) -> list[int]:
        """`workers` and every smaller number of workers that could share out a step evenly; the largest first."""
        together = 2 if self.consistency_weight else 1
        return [count for count in range(self.workers, 0, -1) if self.volumes_per_step % (together * count) == 0]
