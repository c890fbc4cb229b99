"""Training data and training of the embedded style encoder."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmh_ray.config import GridConfig, StyleConfig
from mmh_ray.imaging.intensity import robust_scaling
from mmh_ray.models.style.contrast import LEAST_SPREAD, style_contrast
from mmh_ray.models.style.embedded import EmbeddedBackbone
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder, make_style_encoder
from mmh_ray.models.style.train import REFINE_PEOPLE, REFINE_SCANNERS, block, refine
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render
from mmh_ray.simulation.phantom_people import simulated_person

GRID = GridConfig(spacing_mm=6.0, shape=(32, 40, 32))


@pytest.mark.fast
def test_a_block_has_all_people_by_the_same_scanners_and_alike_scanners_are_closer() -> None:
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
    scanners = torch.randn(10, REFINE_SCANNERS, 1, 1, 1, size) * (torch.arange(size) < 8)  # the others: the person
    persons = torch.randn(10, 1, REFINE_PEOPLE, 1, 1, size) * (torch.arange(size) >= 8)
    statistics = (scanners + persons + 0.1 * torch.randn(10, REFINE_SCANNERS, REFINE_PEOPLE, 3, 2, size)).flatten(1, 2)
    levels = {name: value.clone() for name, value in encoder.backbone.levels.state_dict().items()}
    figures = refine(encoder, statistics, 30, seed=0)
    assert figures["contrast"] < 0.7 * figures["contrast_before"]
    assert figures["spread"] > LEAST_SPREAD
    assert all(torch.equal(value, levels[name]) for name, value in encoder.backbone.levels.state_dict().items())


@pytest.mark.slow
def test_shipped_weights_tell_the_scanner_and_not_the_person() -> None:
    """Four people at six sites of the phantom archives, none of them seen in training.

    An untrained network finds nearest neighbours of the same site too, because it sees the quantiles of the brain. It
    does not know which differences matter, so its contrastive loss is higher.
    """
    spacing, config = 3.0, StyleConfig(slices=3)
    people, scans = [simulate_anatomy(Person(100 + number), spacing) for number in range(4)], []
    for (number, anatomy), site in itertools.product(enumerate(people), range(6)):
        scan = render(anatomy, SITES[site], "T2w", np.random.default_rng([100, number, site]), spacing)
        scans.append(np.clip(robust_scaling(scan, anatomy.brain).apply(scan), 0, 2).astype(np.float32))
    seen = (
        torch.from_numpy(np.stack(scans)),
        torch.from_numpy(np.stack([one.brain for one in people])).repeat_interleave(6, 0),
    )
    site, person = torch.arange(6).repeat(4), torch.arange(4).repeat_interleave(6)
    untrained = TriPlanarStyleEncoder(EmbeddedBackbone(), config, spacing)
    with torch.no_grad():
        styles, other = (
            F.normalize(encoder(*seen), dim=1) for encoder in (make_style_encoder(config, spacing), untrained)
        )

    def share(label: Tensor, excluded: Tensor) -> float:
        """Share of scans whose nearest neighbour has the same label.

        Scans with the same value of ``excluded`` are not counted as neighbours.
        """
        nearest = (styles @ styles.T).masked_fill(excluded[:, None] == excluded, -1).argmax(1)
        return float((label == label[nearest]).float().mean())

    assert share(site, person) >= 0.8  # 1 in 6 by chance
    assert share(person, site) <= 0.4  # 1 in 4
    assert style_contrast(styles, site, 0.1) < style_contrast(other, site, 0.1) - 0.3
