"""The U-Net learns its site's tissues, loses some of it at another, and gives back the scan's own grid."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.evaluation.segmentation import tissue_dice, tissue_labels
from mmh_ray.evaluation.unet import Example, TissueUNet, train_unet
from mmh_ray.imaging.anatomy import Person, simulate_anatomy
from mmh_ray.imaging.phantom import SITES, Scanner, render

pytestmark = pytest.mark.slow

MM = 4.0


def _example(seed: int, scanner: Scanner) -> Example:
    anatomy = simulate_anatomy(Person(seed, age=30 + 10 * seed), MM)
    image = render(anatomy, scanner, "T1w", np.random.default_rng(seed), MM)
    labels = np.where(anatomy.brain, anatomy.fractions[:3].argmax(0) + 1, 0)
    return Example(image, anatomy.brain, labels, anatomy.affine)


def _score(network: TissueUNet, example: Example) -> float:
    found = network.segment(example.image, example.mask, example.affine)
    assert found.shape == (3, *example.image.shape)
    assert found[:, example.mask].sum(axis=0) == pytest.approx(1, abs=1e-3)
    assert not found[:, ~example.mask].any()
    return float(np.mean(list(tissue_dice(tissue_labels(found), example.labels).values())))


def test_its_own_site_is_segmented_better_than_another_and_the_seed_decides():
    network = train_unet((_example(seed, SITES[0]) for seed in range(3)), steps=200)
    own, other = (_score(network, _example(4, scanner)) for scanner in (SITES[0], SITES[3]))
    assert own > 0.7
    assert own > other + 0.02
    short = [train_unet([_example(0, SITES[0])], seed=seed, steps=3) for seed in (5, 5, 6)]
    images = [network.segment(*_given(_example(1, SITES[0]))) for network in short]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def _given(example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return example.image, example.mask, example.affine
