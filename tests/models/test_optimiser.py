"""Muon: steps are orthogonal, whatever the gradient's scale, and convolutions count as matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmh_ray.models.optimiser import Muon, orthogonal

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("shape", [(4, 4), (5, 40), (40, 5)])
def test_singular_vectors_stay_and_singular_values_become_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonal(matrix) @ right.T
    assert torch.allclose(found, found.diag().diag(), atol=1e-5)
    assert ((found.diag() > 0.6) & (found.diag() < 1.3)).all()


def test_a_first_step_has_the_rate_as_its_size_whatever_the_gradients() -> None:
    gradient, steps = torch.randn(6, 30), []
    for scale in (1e-3, 1e3):
        weight = nn.Parameter(torch.zeros(6, 30))
        weight.grad = scale * gradient
        Muon([weight], 0.5).step()
        steps.append(weight.detach().clone())
    assert torch.allclose(*steps, atol=1e-4)
    assert 0.3 < float(torch.linalg.matrix_norm(steps[0], 2)) < 0.65
    assert float((steps[0] * gradient).sum()) < 0  # downhill


def test_a_convolution_moves_as_its_matrix_in_any_memory_format() -> None:
    values, gradient, moved = torch.randn(8, 3, 3, 3), torch.randn(8, 3, 3, 3), []
    for given in (values.flatten(1), values, values.to(memory_format=torch.channels_last)):
        weight = nn.Parameter(given.clone())
        optimizer = Muon([weight], 0.1, weight_decay=0.1)
        for _ in range(3):
            weight.grad = gradient.view(given.shape).clone()
            optimizer.step()
        moved.append(weight.detach().flatten(1))
    assert torch.allclose(moved[0], moved[1], atol=1e-6)
    assert torch.allclose(moved[0], moved[2], atol=1e-6)


def test_a_weight_without_gradient_stays() -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    Muon([weight], 0.5, weight_decay=0.5).step()
    assert torch.equal(weight, torch.ones(3, 3))


def test_a_hidden_matrix_is_found() -> None:
    """Least squares with a known solution."""
    inputs, wanted = torch.randn(64, 8), torch.randn(5, 8)
    weight = nn.Parameter(torch.zeros(5, 8))
    optimizer = Muon([weight], 0.1)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 150)
        (inputs @ (weight - wanted).T).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(weight, wanted, atol=0.05)
