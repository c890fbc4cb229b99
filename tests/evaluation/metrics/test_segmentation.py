"""Tissues of phantoms whose fractions are known, overlap and volumes by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.errors import DataError
from mmh_ray.evaluation.metrics.segmentation import (
    TISSUES,
    dice,
    segment_tissues,
    tissue_dice,
    tissue_labels,
    volume_error,
)
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, Scanner, render

pytestmark = pytest.mark.fast

MM = 4.0


@cache
def _person() -> tuple[Anatomy, np.ndarray]:
    anatomy = simulate_anatomy(Person(21, age=60), MM)
    return anatomy, np.where(anatomy.brain, anatomy.fractions[:3].argmax(0) + 1, 0)


def _dice(scanner: Scanner, sequence: str) -> dict[str, float]:
    anatomy, truth = _person()
    image = render(anatomy, scanner, sequence, np.random.default_rng(3), MM)
    return tissue_dice(tissue_labels(segment_tissues(image, anatomy.brain, sequence)), truth)


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_tissues_of_a_quiet_scan_are_found(sequence):
    found = _dice(Scanner("quiet", flip=30.0, noise=0.01), sequence)
    assert found["WM"] > 0.8
    assert found["GM"] > 0.75
    assert found["CSF"] > 0.35  # thin, and at 4 mm hardly a voxel is of fluid alone


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_a_cleaner_scan_is_segmented_better(sequence):
    noisy = replace(SITES[0], noise=0.15, blur_mm=6.0)
    clean = replace(SITES[0], noise=0.0, blur_mm=0.0, bias=0.0)
    assert np.mean(list(_dice(clean, sequence).values())) > np.mean(list(_dice(noisy, sequence).values())) + 0.05


def test_three_flat_regions_are_told_apart_through_noise_whatever_the_gain(rng):
    labels = np.repeat([1, 2, 3], 6)[:, None, None] * np.ones((18, 12, 12), int)
    image = np.array([0, 0.1, 0.5, 0.9])[labels] + rng.normal(0, 0.15, labels.shape)
    mask = np.ones(labels.shape, bool)
    found = segment_tissues(image, mask, "T1w")
    assert min(tissue_dice(tissue_labels(found), labels).values()) > 0.97
    assert np.array_equal(tissue_labels(found), tissue_labels(segment_tissues(700 * image + 90, mask, "T1w")))
    assert found.sum(axis=0) == pytest.approx(np.ones(labels.shape), abs=1e-5)
    without = np.digitize(image, [0.3, 0.7]) + 1  # the ideal thresholds, without a look at the neighbours
    assert tissue_dice(without, labels)["GM"] < 0.9


def test_brightness_names_tissues_by_sequence():
    ramp = np.repeat([0.0, 0.5, 1.0], 4)[:, None, None] * np.ones((12, 6, 6))
    mask = np.ones(ramp.shape, bool)
    darkest = {name: int(tissue_labels(segment_tissues(ramp, mask, name))[0, 0, 0]) for name in ("T1w", "T2w", "FLAIR")}
    assert {name: TISSUES[label - 1] for name, label in darkest.items()} == {"T1w": "CSF", "T2w": "WM", "FLAIR": "CSF"}
    with pytest.raises(DataError, match="T1w, T2w, FLAIR"):
        segment_tissues(ramp, mask, "bold")


def test_outside_the_mask_nothing_is_seen_and_a_flat_brain_is_undecided():
    mask = ndimage.binary_erosion(np.ones((10, 10, 10), bool))
    image = np.random.default_rng(0).normal(size=mask.shape)
    found = segment_tissues(image, mask, "T1w")
    assert not found[:, ~mask].any()
    assert not tissue_labels(found)[~mask].any()
    assert np.array_equal(found, segment_tissues(np.where(mask, image, 1e5), mask, "T1w"))
    assert segment_tissues(np.ones(mask.shape), mask, "T1w")[:, mask] == pytest.approx(1 / 3)


def test_overlap_and_volumes_by_hand():
    a, b = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(a, b) == pytest.approx(2 * 2 / 6)
    assert np.isnan(dice(a & ~a, b & ~b))
    assert volume_error(np.array([0.5, 0.5, 1.0]), np.array([1, 0, 0], bool)) == pytest.approx(1)
    assert np.isnan(volume_error(a, ~(a | ~a)))
