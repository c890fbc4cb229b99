"""Training examples for brain extraction: a larger field of view shows the same head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmh_ray.imaging.brain_extractor import MULTIPLE, REACH_MM
from mmh_ray.simulation.train_brain import GRID, in_field_of_view

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("seed", range(8))
def test_a_field_of_view_holds_the_head_with_air_around_it(seed: int) -> None:
    head = torch.zeros((1, *GRID.shape))
    distance_mm = torch.full((1, *GRID.shape), -REACH_MM)
    brain = (slice(None), slice(20, 40), slice(20, 60), slice(40, 70))
    head[brain] = 1.0
    distance_mm[brain] = 5.0
    seen, seen_mm = in_field_of_view((head, distance_mm), np.random.default_rng(seed))
    assert seen.shape == seen_mm.shape
    assert all(length % MULTIPLE == 0 for length in seen.shape[1:])
    assert seen.sum() == head.sum()  # only what lies below the brain is ever left out
    torch.testing.assert_close(seen > 0, seen_mm > 0)
    assert seen_mm.min() == -REACH_MM
