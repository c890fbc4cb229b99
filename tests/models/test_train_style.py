"""Training data and training of the embedded style encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmh_ray.config import GridConfig, StyleConfig
from mmh_ray.imaging.simulation import simulated_person
from mmh_ray.models.style import TriPlanarStyleEncoder
from mmh_ray.models.style_backbones import EmbeddedBackbone
from mmh_ray.models.style_training import LEAST_SPREAD
from mmh_ray.models.train_style import REFINE_PEOPLE, REFINE_SCANNERS, block, refine

GRID = GridConfig(spacing_mm=6.0, shape=(32, 40, 32))


@pytest.mark.fast
def test_block_shows_everyone_by_the_same_scanners_and_alike_ones_are_nearer() -> None:
    people = [simulated_person(5, number, GRID) for number in range(2)]
    plain, alike = (np.stack(list(block(people, "T1w", GRID, 4, [1, 2], near))) for near in (False, True))
    brains = np.stack([person.brain for person in people] * 4)
    assert plain.shape == (8, *GRID.shape)
    assert not plain[~brains].any()
    assert np.array_equal(plain[[0, 1, 4, 5]], alike[[0, 1, 4, 5]])  # the first of each pair is drawn alone
    apart = [np.abs(scans[0] - scans[2])[people[0].brain].mean() for scans in (plain, alike)]
    assert apart[1] < apart[0]


@pytest.mark.fast
def test_refining_finds_the_statistics_that_tell_scanners_apart() -> None:
    torch.manual_seed(0)
    encoder = TriPlanarStyleEncoder(EmbeddedBackbone(16, width=4), StyleConfig(), 3.0)
    size = encoder.backbone.head[0].normalized_shape[0]
    scanners = torch.randn(10, REFINE_SCANNERS, 1, 1, 1, size) * (torch.arange(size) < 8)  # the others tell the person
    persons = torch.randn(10, 1, REFINE_PEOPLE, 1, 1, size) * (torch.arange(size) >= 8)
    statistics = (scanners + persons + 0.1 * torch.randn(10, REFINE_SCANNERS, REFINE_PEOPLE, 3, 2, size)).flatten(1, 2)
    levels = {name: value.clone() for name, value in encoder.backbone.levels.state_dict().items()}
    figures = refine(encoder, statistics, 30, seed=0)
    assert figures["contrast"] < 0.7 * figures["contrast_before"]
    assert figures["spread"] > LEAST_SPREAD
    assert all(torch.equal(value, levels[name]) for name, value in encoder.backbone.levels.state_dict().items())
