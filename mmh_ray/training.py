"""What trainings here share: a schedule of learning rates, a step, and a moving average of the weights.

The schedule and the average are written by hand although diffusers has them, because its own would change every figure of a training:

- ``diffusers.training_utils.EMAModel`` counts its steps from one later, rounds differently, and leaves out buffers,
  among which is the unified domain.
- ``diffusers.optimization`` lets the cosine begin after the warm-up and end at 0.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def learning_rate_share(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate, 0 to 1, at a step of so many: linear warm-up, then half a cosine down to 1 %."""
    warm_up = min(1.0, (step + 1) / max(1, warmup_steps))
    progress = min(1.0, step / steps)
    half_cosine = 1 + math.cos(math.pi * progress)
    decay = 0.01 + 0.99 * 0.5 * half_cosine
    return warm_up * decay


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer, most_norm: float = 1.0) -> None:
    """One step of an optimiser down the gradient of a loss, whose norm over all its weights is cut at ``most_norm``."""
    optimizer.zero_grad()
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    nn.utils.clip_grad_norm_(weights, most_norm)
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
