"""Networks that are built without memory for their weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmh_ray.models.without_values import without_values


def build() -> nn.Module:
    """Layers whose weights are initialised in different ways."""
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.Conv1d(8, 2, 1))


@pytest.mark.fast
def test_weights_have_shapes_until_a_state_is_loaded() -> None:
    full = build()
    before = torch.get_rng_state()
    with without_values():
        empty = build()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.is_meta for weight in empty.parameters())
    empty.load_state_dict(full.state_dict(), assign=True)
    numbers = torch.tensor([[0, 3], [2, 4]])
    assert torch.equal(empty[:2](numbers), full[:2](numbers))
    assert not build()[1].weight.is_meta


LOAD = """
import sys
from mmh_ray.models.bundle import load_bundle
model = load_bundle(sys.argv[1]).model
assert not any(tensor.is_meta for tensor in model.state_dict().values())
assert not {"torch._dynamo", "sympy", "scipy.stats"} & sys.modules.keys()
"""


@pytest.mark.slow
def test_a_bundle_is_loaded_without_pytorchs_compiler(tiny_bundle: Path) -> None:
    """Every process with a network would pay for it with time and memory."""
    result = subprocess.run([sys.executable, "-c", LOAD, str(tiny_bundle)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
