"""Muon: an optimiser that orthogonalises every momentum step, for a network's hidden weights (Jordan et al., 2024).

``torch.optim.Muon`` accepts no convolutions, and computes in bfloat16. On a CPU without bfloat16 instructions that took
longer than the rest of a training step. This version reshapes convolutions and computes in the weights' precision.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x**3 and x**5 that move singular values towards 1 (Jordan et al., 2024)."""
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay.

    Parameters
    ----------
    weights:
        Parameters of two dimensions or more; ``(out, ...)`` is treated as a matrix of ``out`` rows.
    rate:
        Learning rate: the spectral norm of a step, for a matrix that is not taller than wide.
    """

    def __init__(self, weights: Iterable[nn.Parameter], rate: float, weight_decay: float = 0.0) -> None:
        defaults = {"lr": rate, "weight_decay": weight_decay}
        super().__init__(weights, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - _MOMENTUM)
                nesterov = weight.grad.lerp(momentum, _MOMENTUM).flatten(1)
                rows, columns = nesterov.shape
                tallness = max(1.0, rows / columns) ** 0.5
                step = orthogonal(nesterov).view(weight.shape)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(step, alpha=-group["lr"] * tallness)


def orthogonal(matrix: Tensor) -> Tensor:
    """Move all singular values of ``(n, m)`` near 1 (about 0.7 to 1.2) by Newton-Schulz iteration.

    The singular vectors stay the same.
    """
    a, b, c = _POLYNOMIAL
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix  # makes the product with its transpose as small as possible
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(_ROUNDS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.T.contiguous() if is_tall else wide
