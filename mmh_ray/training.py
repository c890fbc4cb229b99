"""Shared parts of all trainings: a learning rate schedule, an optimiser step, a moving average of the weights.

Schedule and average are written by hand, because those of diffusers would change every figure of a training:

- ``diffusers.training_utils.EMAModel`` starts counting one step later, rounds differently, and leaves out buffers,
  one of which is the unified domain.
- ``diffusers.optimization`` starts the cosine after the warm-up and ends at 0.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def learning_rate_share(step: int, steps: int, warmup_steps: int) -> float:
    """Learning rate at a step, as a share 0-1 of its peak: half a cosine down to 1 %, with a linear warm-up."""
    warm_up = min(1.0, (step + 1) / max(1, warmup_steps))
    progress = min(1.0, step / steps)
    half_cosine = 1 + math.cos(math.pi * progress)
    decay = 0.01 + 0.99 * 0.5 * half_cosine
    return warm_up * decay


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one optimiser step on a loss; the norm of the gradient over all weights is clipped at 1."""
    optimizer.zero_grad()
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, steps_done: int, highest_decay: float) -> None:
    """Exponential moving average of parameters and buffers, in place; the decay is smaller in the first steps."""
    decay = min(highest_decay, (1 + steps_done) / (10 + steps_done))
    averages = average.state_dict().values()
    currents = current.state_dict().values()
    for mean, value in zip(averages, currents, strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
