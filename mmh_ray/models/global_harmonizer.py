"""Stage 1, the global harmonizer: brings every image of a sequence into one unified domain.

In training, the condition of a slab comes from a randomly re-styled copy of its volume, while the target shows the
unified style. From noise and condition the network can therefore only generate the unified domain (docs/method.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmh_ray.config import ModelConfig, TrainConfig
from mmh_ray.imaging.intensity import MonotoneMap
from mmh_ray.models.denoiser import Context, Denoiser, make_scheduler, to_diffusion, to_unit
from mmh_ray.models.losses import (
    gradient_mse,
    group_statistics,
    masked_mse,
    soft_cumulative,
    style_distance,
    twin_mse,
)
from mmh_ray.models.without_values import without_values


@dataclass
class SlabBatch:
    """Slice groups of ``G`` volumes, ``B`` slabs in all.

    Attributes
    ----------
    image:
        ``(B, K, H, W)`` the target slab in unit intensity, in the unified style.
    condition:
        ``(B, C, H, W)`` the condition, from the re-styled copy.
    mask:
        ``(B, K, H, W)`` 1 inside the brain.
    sequence, plane, group:
        ``(B,)`` long; ``group`` counts the volumes of the batch from 0.
    position:
        ``(B,)`` float, 0 to 1 along the plane's normal.
    twin:
        ``(B,)`` long; groups with the same number show the same slices of one person, from different scanners.
    key:
        ``(B,)`` long, seed of the slab's noise and timestep: a slab gets the same draw on any worker.
    """

    image: Tensor
    condition: Tensor
    mask: Tensor
    sequence: Tensor
    plane: Tensor
    group: Tensor
    position: Tensor
    twin: Tensor
    key: Tensor

    @classmethod
    def of_groups(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Join stacked groups ``(G, n, ...)`` (see :mod:`mmh_ray.models.slab_groups`) into a batch of ``G n`` slabs."""
        groups, slabs = arrays["plane"].shape
        integers = ("sequence", "plane", "twin", "key")
        fields: dict[str, Tensor] = {}
        for name, array in arrays.items():
            values = torch.from_numpy(np.array(array)).flatten(0, 1)  # a copy: arrays may be read-only
            fields[name] = values if name in integers else values.float()
        return cls(**fields, group=torch.arange(groups).repeat_interleave(slabs))

    def to(self, device: torch.device) -> Self:
        """Copy the batch to a device."""
        fields = {name: value.to(device) for name, value in vars(self).items()}
        return type(self)(**fields)


class GlobalHarmonizer(nn.Module):
    """The denoiser, its schedule and the running statistics of the unified domain, one row per sequence.

    Parameters
    ----------
    quantiles:
        ``(S, 2, Q)``: for each sequence the mean quantile function of its cohort, where the unified domain starts, and
        the tissue quantiles that volumes are matched to for the condition.
    has_values:
        Whether the denoiser gets random weights; if not, its weights have shapes alone until a state is loaded with
        ``assign=True``.

    Attributes
    ----------
    levels:
        Index of a sequence to the curve from the denoiser's intensities to those of the unified domain; empty for a
        model of a cohort. Squared error favours the mean of all plausible images, so a denoiser reduces the contrast
        between tissues; the curve restores it. See :mod:`mmh_ray.distributed.levels`.
    """

    levels: dict[int, MonotoneMap]
    domain_quantiles: Tensor
    domain_cumulative: Tensor
    domain_moments: Tensor

    def __init__(self, model: ModelConfig, train: TrainConfig, quantiles: Tensor, has_values: bool = True) -> None:
        super().__init__()
        quantiles = quantiles.float()
        self.model_config = model
        self.train_config = train
        self.levels = {}
        with contextlib.nullcontext() if has_values else without_values():
            denoiser = Denoiser(model)
        self.denoiser = denoiser.to(memory_format=torch.channels_last)  # a tenth faster on a CPU
        self.scheduler = make_scheduler(model)
        self.register_buffer("domain_quantiles", quantiles.clone())
        start = quantiles[:, 0]
        cumulative = [soft_cumulative(of_sequence) for of_sequence in start]
        self.register_buffer("domain_cumulative", torch.stack(cumulative))
        self.register_buffer("domain_moments", torch.stack([start.mean(1), start.std(1)], dim=1))

    def forward(self, batch: SlabBatch, style_ramp: float = 1.0) -> dict[str, Tensor]:
        """Losses of a batch: ``loss`` is the weighted sum to differentiate, the others are its parts.

        ``style_ramp`` (0 to 1) is a further weight of the style loss, which grows during training.
        """
        noise, timestep = self.draw(batch)
        predicted = self.predict(batch, noise, timestep)
        target = to_diffusion(batch.image)
        weights = self.train_config
        parts = {
            "mse": masked_mse(predicted, target, batch.mask, batch.group),
            "gradient": gradient_mse(predicted, target, batch.mask, batch.group),
            "style": self.style_loss(predicted, batch),
            "consistency": twin_mse(predicted, batch.mask, batch.group, batch.twin),
        }
        loss = parts["mse"] + weights.gradient_weight * parts["gradient"]
        loss = loss + weights.consistency_weight * parts["consistency"]
        return {"loss": loss + style_ramp * weights.style_weight * parts["style"], **parts}

    def predict(self, batch: SlabBatch, noise: Tensor, timestep: Tensor) -> Tensor:
        """Predict x0 from the batch with noise added up to ``timestep``."""
        clean = to_diffusion(batch.image)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        context = self.context(batch)
        return self.denoiser(noisy, timestep, batch.condition, context)

    def context(self, batch: SlabBatch) -> Context:
        """Context of each slab for the denoiser."""
        return Context(
            sequence=batch.sequence,
            plane=batch.plane,
            position=batch.position,
            domain=self.domain_moments[batch.sequence],
        )

    def draw(self, batch: SlabBatch) -> tuple[Tensor, Tensor]:
        """Draw noise like the image and timesteps ``(B,)`` from each slab's key.

        A share of the slabs (``terminal_share``) gets the last timestep.
        """
        length = self.scheduler.config["num_train_timesteps"]
        noises = []
        timesteps = []
        for key in batch.key.tolist():
            generator = torch.Generator().manual_seed(key)
            noises.append(torch.randn(batch.image.shape[1:], generator=generator))
            terminal = float(torch.rand((), generator=generator)) < self.train_config.terminal_share
            drawn = int(torch.randint(length, (), generator=generator))
            timesteps.append(length - 1 if terminal else drawn)
        device = batch.image.device
        return torch.stack(noises).to(device), torch.tensor(timesteps, device=device)

    def style_loss(self, predicted: Tensor, batch: SlabBatch) -> Tensor:
        """Mean distance of the groups from their unified domains.

        In training it also moves the domains a little towards the groups.
        """
        centre = predicted.shape[1] // 2
        image = to_unit(predicted[:, centre])
        cumulative, moments = group_statistics(image, batch.mask[:, centre], batch.group)
        first_slabs = [int((batch.group == index).nonzero()[0]) for index in range(len(moments))]
        sequence = batch.sequence[first_slabs]
        domain_cumulative = self.domain_cumulative[sequence].clone()  # the buffers change before the backward pass
        domain_moments = self.domain_moments[sequence].clone()
        distance = style_distance(cumulative, moments, domain_cumulative, domain_moments)
        if self.training:
            self._drift(cumulative.detach(), moments.detach(), sequence)
        return distance.mean()

    @torch.no_grad()
    def _drift(self, cumulative: Tensor, moments: Tensor, sequence: Tensor) -> None:
        """Update the domains as exponential moving averages over the groups of all workers."""
        ones = torch.ones_like(moments[:, :1])
        statistics = torch.cat([cumulative, moments, ones], dim=1)  # the sum of the ones is the number of groups
        sequences = len(self.domain_moments)
        total = statistics.new_zeros(sequences, statistics.shape[1])
        total.index_add_(0, sequence, statistics)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        count = total[:, -1:]
        has_groups = count > 0
        rate = (1 - self.train_config.domain_decay) * has_groups
        mean = total / count.clamp_min(1)
        mean_cumulative = mean[:, :-3]
        mean_moments = mean[:, -3:-1]
        self.domain_cumulative.lerp_(mean_cumulative, rate)
        self.domain_moments.lerp_(mean_moments, rate)
