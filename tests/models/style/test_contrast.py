"""Contrast between styles and the training of the aggregator: it separates sites, and it never collapses silently."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmh_ray.config import StyleConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.style.contrast import LEAST_SPREAD, spread, spread_shortfall, style_contrast, train_aggregator
from mmh_ray.models.style.embedded import EmbeddedBackbone
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder

pytestmark = pytest.mark.fast

SIZE, SITES = 16, 4
CONFIG = StyleConfig(slices=3, steps=40, learning_rate=3e-3)


@pytest.fixture
def encoder() -> TriPlanarStyleEncoder:
    """An encoder whose aggregator starts as the mean."""
    torch.manual_seed(0)
    return TriPlanarStyleEncoder(EmbeddedBackbone(SIZE, width=4), CONFIG, 3.0)


def cohort(people: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slice features of every person at every site, the site labels, and sequence labels, which are all 0.

    The features are the sum of a large part of the person, a small part of the site, and a little noise.
    """
    fixed, draw = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    sites = torch.randn(SITES, 1, 3, 1, SIZE, generator=fixed)
    persons = torch.randn(1, people, 3, 1, SIZE, generator=draw)
    mixing = torch.randn(SIZE // 2, SIZE, generator=fixed) / math.sqrt(SIZE / 2)  # people differ in half of the space
    noise = torch.randn(SITES, people, 3, 3, SIZE, generator=draw)
    features = 0.5 * sites + persons[..., : SIZE // 2] @ mixing + 0.1 * noise
    labels = torch.arange(SITES).repeat_interleave(people)
    return features.flatten(0, 1), labels, torch.zeros_like(labels)


def separation(styles: Tensor, labels: Tensor) -> float:
    """Mean cosine within sites minus that between sites."""
    unit = F.normalize(styles, dim=1)
    same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
    cosines = unit @ unit.T
    return float(cosines[same].mean() - cosines[labels[:, None] != labels].mean())


def test_contrast_of_perfect_and_of_worthless_vectors() -> None:
    labels = torch.arange(4).repeat_interleave(2)
    assert float(style_contrast(torch.eye(4)[labels], labels, 0.05)) < 1e-6
    assert float(style_contrast(torch.ones(8, 4), labels, 0.1)) == pytest.approx(math.log(7))


def test_contrast_by_hand() -> None:
    styles, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0, 1])
    first = -math.log(math.exp(0) / (math.exp(0) + math.exp(1)))
    second = -math.log(math.exp(0) / (math.exp(0) + math.exp(0)))
    assert float(style_contrast(styles, labels, 1.0)) == pytest.approx((first + second) / 2)


def test_anatomy_in_a_style_vector_costs() -> None:
    labels, people = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    style, person = F.one_hot(labels, 4).float(), F.one_hot(people, 3).float()
    clean, leaking = (torch.cat([style, share * person], dim=1) for share in (0.0, 1.0))
    assert style_contrast(leaking, labels, 0.1) > style_contrast(clean, labels, 0.1) + 0.5


def test_contrast_without_a_pair_is_zero_and_has_a_gradient() -> None:
    styles = torch.randn(3, 4, requires_grad=True)
    loss = style_contrast(styles, torch.arange(3), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert styles.grad.isfinite().all()


def test_spread_of_known_vectors() -> None:
    assert spread(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    assert spread(torch.eye(3)) == pytest.approx(1)
    assert spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2)


def test_shortfall_is_one_where_all_are_alike_and_falls_with_variety() -> None:
    assert float(spread_shortfall(torch.ones(6, 4))) == pytest.approx(0.99, abs=1e-3)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert float(spread_shortfall(signs)) == pytest.approx(0, abs=1e-6)


def test_training_separates_sites_of_people_never_seen_and_does_not_collapse(encoder) -> None:
    unseen, unseen_labels, _ = cohort(6, seed=2)
    with torch.no_grad():
        before = separation(encoder.aggregator(unseen), unseen_labels)
    figures = train_aggregator(encoder, *cohort(8, seed=1), CONFIG)
    with torch.no_grad():
        styles = encoder.aggregator(unseen)
    assert separation(styles, unseen_labels) > before + 0.2
    assert figures["contrast"] < figures["contrast_before"]
    assert spread(styles) > 0.3
    assert figures["spread"] > LEAST_SPREAD


def test_training_is_reproducible_and_leaves_the_backbone(encoder) -> None:
    backbone = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    start = {name: value.clone() for name, value in encoder.aggregator.state_dict().items()}
    few = replace(CONFIG, steps=8)
    first = train_aggregator(encoder, *cohort(4, seed=1), few, seed=5)
    encoder.aggregator.load_state_dict(start)
    assert train_aggregator(encoder, *cohort(4, seed=1), few, seed=5) == first
    assert all(torch.equal(value, backbone[name]) for name, value in encoder.backbone.state_dict().items())


def test_collapse_is_refused_and_undone(encoder) -> None:
    """If all features are equal, all style vectors must be equal."""
    start = {name: value.clone() for name, value in encoder.aggregator.state_dict().items()}
    with pytest.raises(ModelError, match=r"collapsed style vectors \(mean cosine distance .* expected 0.05 or more"):
        train_aggregator(encoder, torch.ones(8, 3, 3, SIZE), torch.arange(2).repeat(4), torch.zeros(8).long(), CONFIG)
    assert all(torch.equal(value, start[name]) for name, value in encoder.aggregator.state_dict().items())


def test_sequences_that_are_told_apart_hide_no_collapse(encoder) -> None:
    """One vector per sequence gives a large distance, but tells nothing about sites."""
    sequences, looks = torch.arange(2).repeat_interleave(8), torch.randn(2, 1, 1, SIZE)
    features = looks[sequences].expand(-1, 3, 3, -1)
    with torch.no_grad():
        assert spread(encoder.aggregator(features)) > LEAST_SPREAD
    with pytest.raises(ModelError, match="collapsed style vectors"):
        train_aggregator(encoder, features, torch.arange(4).repeat(4) + 4 * sequences, sequences, CONFIG)


def test_a_sequence_without_a_contrast_is_left_out(encoder) -> None:
    features, labels, sequences = cohort(4, seed=1)
    more = torch.cat([features, torch.ones(2, 3, 3, SIZE)]), torch.cat([labels, torch.tensor([0, 1])])
    start = {name: value.clone() for name, value in encoder.aggregator.state_dict().items()}
    few = replace(CONFIG, steps=3)
    found = train_aggregator(encoder, *more, torch.cat([sequences, torch.ones(2).long()]), few)
    encoder.aggregator.load_state_dict(start)
    assert found == train_aggregator(encoder, features, labels, sequences, few)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_labels_without_a_contrast_are_refused(encoder, labels: list[int]) -> None:
    with pytest.raises(ModelError, match="expected a sequence of two sites, one of them with two volumes"):
        train_aggregator(encoder, torch.randn(3, 3, 3, SIZE), torch.tensor(labels), torch.zeros(3).long(), CONFIG)
