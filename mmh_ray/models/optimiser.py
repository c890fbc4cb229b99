"""Muon: momentum whose every step is made orthogonal, for the weights inside a network (Jordan et al., 2024).

``torch.optim.Muon`` takes matrices alone, no convolutions, and reckons in bfloat16, which took longer than the rest of a training step on
a CPU that has no such instructions; this one reshapes and keeps to the weights' own precision.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of the gradients, orthogonalised; decoupled weight decay.

    Parameters
    ----------
    weights:
        Of two dimensions or more; ``(out, ...)`` counts as a matrix of ``out`` rows.
    rate:
        Learning rate: the spectral norm of a step of a matrix that is not taller than wide.
    """

    def __init__(self, weights: Iterable[nn.Parameter], rate: float, weight_decay: float = 0.0) -> None:
        super().__init__(weights, {"lr": rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on the gradients that are there."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
                ahead = weight.grad.lerp(state["momentum"], _MOMENTUM).flatten(1)
                tall = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(ahead).view(weight.shape), alpha=-group["lr"] * tall)


def orthogonal(matrix: Tensor) -> Tensor:
    """``(n, m)`` with the same singular vectors and all singular values near 1 (about 0.7 to 1.2), by Newton-Schulz iteration."""
    a, b, c = _POLYNOMIAL
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp_min(1e-7)
    for _ in range(_ROUNDS):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.T.contiguous() if tall else found
