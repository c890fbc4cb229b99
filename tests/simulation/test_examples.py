"""Training pairs: a scan as preparation makes it, and its truth in the unified domain."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.config import GridConfig
from mmh_ray.simulation.examples import Example, example, found_brain, random_head
from mmh_ray.simulation.protocols import SEQUENCES, canonical_levels, random_scan
from mmh_ray.simulation.scanner import canonical_image, random_oddity, render
from mmh_ray.simulation.tissues import FLUID, GREY, WHITE

pytestmark = pytest.mark.fast

GRID = GridConfig(6.0, (32, 40, 32))
ITERATIONS = (5, 5)


def made(sequence: str, seed: int) -> Example:
    return example(random_head((), 11, GRID), sequence, seed, GRID, ITERATIONS)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_scan_and_truth_show_the_same_person(sequence: str) -> None:
    found = made(sequence, 1)
    inside = found.mask
    assert not found.scan[~inside].any()
    assert not found.truth[~inside].any()
    assert np.isfinite(found.scan).all()
    assert np.corrcoef(found.scan[inside], found.truth[inside])[0, 1] > 0.5


def test_the_truth_has_the_levels_of_the_domain() -> None:
    head = random_head((), 11, GRID)
    for sequence in SEQUENCES:
        image = canonical_image(head, sequence)
        for tissue in (FLUID, GREY, WHITE):
            pure = head.fractions[tissue] > 0.98
            if pure.sum() > 20:
                assert np.median(image[pure]) == pytest.approx(canonical_levels(sequence)[tissue], rel=0.05)


def test_the_same_seed_gives_the_same_bytes_and_another_scanner_another_scan() -> None:
    np.testing.assert_array_equal(made("T1w", 1).scan, made("T1w", 1).scan)
    assert np.abs(made("T1w", 1).scan - made("T1w", 2).scan).max() > 0.05


@pytest.mark.slow
def test_scans_differ_more_than_their_truths() -> None:
    examples = [made("T1w", seed) for seed in range(6)]
    common = np.logical_and.reduce([one.mask for one in examples])
    scans = np.std([one.scan[common].mean() / one.scan[common].std() for one in examples])
    truths = np.std([one.truth[common].mean() / one.truth[common].std() for one in examples])
    assert truths < 0.3 * scans


def test_the_border_of_a_found_brain_varies_around_the_true_one() -> None:
    head = random_head((), 11, GRID)
    masks = [found_brain(head, np.random.default_rng(seed), 6.0) for seed in range(10)]
    dice = [2 * (mask & head.brain).sum() / (mask.sum() + head.brain.sum()) for mask in masks]
    assert min(dice) > 0.8
    assert max(dice) == 1


def test_images_are_not_negative() -> None:
    head = random_head((), 11, GRID)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        image = render(head, random_scan("T2w", rng), rng, 6.0, random_oddity(rng))
        assert image.min() >= 0
        assert image.dtype == np.float32
