"""The U-Net learns tissues at one site; its scores at other sites depend on how similar they look."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from mmh_ray.errors import DataError
from mmh_ray.evaluation.probes.segmentation_network import TissueSlices, tissue_slices, unet_transfer
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, Scanner, render

pytestmark = pytest.mark.slow

MM = 4.0


@cache
def _person(seed: int) -> Anatomy:
    return simulate_anatomy(Person(seed, age=30 + 10 * seed), MM)


def _labels(anatomy: Anatomy) -> np.ndarray:
    return np.where(anatomy.brain, anatomy.fractions[:3].argmax(0) + 1, 0)


def _slices(seed: int, scanner: Scanner) -> TissueSlices:
    anatomy = _person(seed)
    image = render(anatomy, scanner, "T1w", np.random.default_rng(seed), MM)
    return tissue_slices(image, anatomy.brain, _labels(anatomy), anatomy.affine)


def _cohort(*scanners: Scanner) -> tuple[list[TissueSlices], list[str], list[str]]:
    """Four people at each of some sites, ``a``, ``b`` and so on, each with a scanner of its own."""
    places = [(person, site) for site in range(len(scanners)) for person in range(4)]
    images = [_slices(person, scanners[site]) for person, site in places]
    return images, ["abc"[site] for _, site in places], [str(person) for person, _ in places]


def test_slices_show_the_brain_and_its_tissues_and_do_not_depend_on_intensity_units():
    anatomy, image = _person(0), _slices(0, SITES[0])
    assert image.image.shape == image.labels.shape == (16, 64, 64)
    assert not image.image[image.labels == 0].any()
    shown, whole = np.bincount(image.labels.ravel())[1:], np.bincount(_labels(anatomy).ravel())[1:]
    assert shown / shown.sum() == pytest.approx(whole / whole.sum(), abs=0.05)
    scan = render(anatomy, SITES[0], "T1w", np.random.default_rng(0), MM)
    other = tissue_slices(300 * scan + 20, anatomy.brain, _labels(anatomy), anatomy.affine)
    assert np.allclose(image.image, other.image, atol=2e-3)


def test_it_scores_higher_at_a_similar_site_than_at_a_different_one_and_depends_on_the_seed():
    scores = unet_transfer(*_cohort(SITES[0], SITES[0], SITES[3]))
    at_home, alike, unlike = np.split(scores, 3)
    assert np.isnan(at_home).all()
    (dice, error), (other, _) = np.mean(alike, axis=0), np.mean(unlike, axis=0)
    assert dice > 0.7
    assert error < 0.5
    assert other < dice - 0.02
    short = [unet_transfer(*_cohort(SITES[0], SITES[0]), seed=seed, steps=3)[4:] for seed in (5, 5, 6)]
    assert np.array_equal(short[0], short[1])
    assert not np.array_equal(short[0], short[2])


def test_one_subject_cannot_both_teach_and_be_tested():
    image = _slices(0, SITES[0])
    with pytest.raises(DataError, match="to train on at a"):
        unet_transfer([image, image], ["a", "b"], ["1", "1"])
