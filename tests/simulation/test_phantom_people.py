"""Simulated training pairs are reproducible and varied; scan and truth show the same person."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.config import GridConfig
from mmh_ray.imaging.intensity import QUANTILES
from mmh_ray.simulation import phantom_people
from mmh_ray.simulation.phantom import SEQUENCES
from mmh_ray.simulation.phantom_people import canonical_quantiles, simulated_pair

pytestmark = pytest.mark.fast

GRID = GridConfig(6.0, (32, 40, 32))


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_same_index_has_the_same_bytes(sequence: str) -> None:
    first = simulated_pair(5, sequence, GRID, 0)
    phantom_people.simulated_person.cache_clear()
    phantom_people.simulated_truth.cache_clear()
    for one, again in zip(first, simulated_pair(5, sequence, GRID, 0), strict=True):
        np.testing.assert_array_equal(one, again)


def test_another_index_or_seed_is_another_scan() -> None:
    plain, other_person, other_scanner, much_later, other_seed = (
        simulated_pair(index, "T1w", GRID, seed) for index, seed in ((0, 0), (2, 0), (1, 0), (16, 0), (0, 1))
    )
    for again in (other_scanner, much_later):
        assert not np.array_equal(plain[0], again[0])
        for same, expected in zip(again[1:], plain[1:], strict=True):  # the same person: the same truth and brain
            np.testing.assert_array_equal(same, expected)
    for other in (other_person, other_seed):
        assert not np.array_equal(plain[1], other[1])


def test_eight_people_in_sixty_four_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    drawn = phantom_people.simulated_person

    def record(seed: int, number: int, grid: GridConfig) -> object:
        asked.append(number)
        return drawn(seed, 0, grid)

    monkeypatch.setattr(phantom_people, "simulated_person", record)
    monkeypatch.setattr(phantom_people, "simulated_truth", lambda *_: np.zeros(GRID.shape))  # remembers people, too
    for index in range(128):
        simulated_pair(index, "T1w", GRID, 0)
    assert [asked[:64].count(number) for number in range(8)] == [8] * 8
    assert [asked[64:].count(number) for number in range(8, 16)] == [8] * 8


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("index", [0, 3, 70])
def test_scan_and_truth_are_finite_on_the_grid_and_zero_outside_the_brain(sequence: str, index: int) -> None:
    scan, truth, mask = simulated_pair(index, sequence, GRID, 0)
    for image in (scan, truth):
        assert image.shape == GRID.shape
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert not image[~mask].any()
    assert mask.dtype == bool
    assert np.percentile(scan[mask], 99.5) == pytest.approx(1, abs=1e-3)
    assert scan.max() <= 2
    assert np.corrcoef(scan[mask], truth[mask])[0, 1] > 0.5  # the same anatomy


@pytest.mark.parametrize("index", range(8))
def test_brain_is_whole_and_in_the_middle_of_the_grid(index: int) -> None:
    mask = simulated_pair(index, "T1w", GRID, 0)[2]
    found = np.argwhere(mask)
    assert np.abs((found.min(0) + found.max(0)) / 2 - (np.array(GRID.shape) - 1) / 2).max() <= 1
    assert found.min() > 0
    assert (found.max(0) < np.array(GRID.shape) - 1).all()
    assert 1.0 < mask.sum() * 6.0**3 / 1e6 < 2.6  # litres


def test_a_brain_larger_than_the_grid_is_cropped_around_its_middle() -> None:
    small = GridConfig(6.0, (16, 16, 16))
    mask = simulated_pair(0, "T1w", small, 0)[2]
    assert mask.shape == small.shape
    assert mask[8, 8, 8]
    assert mask.mean() > 0.8


def test_people_differ_in_age_lesions_ventricles_and_cavities(monkeypatch: pytest.MonkeyPatch) -> None:
    people = []
    drawn = phantom_people.simulate_anatomy

    def record(person: object, spacing_mm: float) -> object:
        people.append(person)
        return drawn(phantom_people.Person(0), spacing_mm)

    monkeypatch.setattr(phantom_people, "simulate_anatomy", record)
    for number in range(40):
        phantom_people.simulated_person.__wrapped__(0, number, GRID)
    assert len({person.seed for person in people}) == 40
    assert min(person.seed for person in people) >= phantom_people.FIRST_SEED
    assert min(person.age for person in people) < 30
    assert max(person.age for person in people) > 80
    for trait in ("lesions", "ventricles", "cavities"):
        assert 0 < sum(getattr(person, trait) > 0 for person in people) < 40


def test_canonical_quantiles_are_monotone_and_skip_sequences_that_cannot_be_simulated() -> None:
    found = canonical_quantiles(("T1w", "FLAIR", "T2w"), GRID, 0, people=3)
    assert set(found) == {"T1w", "T2w"}
    for quantiles in found.values():
        assert quantiles.shape == QUANTILES.shape
        assert (np.diff(quantiles) >= 0).all()
        assert quantiles[0] >= 0
    assert found["T1w"][-1] == pytest.approx(1, abs=0.05)  # white matter
    assert found["T2w"][-1] > 1.2  # fluid is brighter than grey matter


def test_canonical_quantiles_are_the_mean_over_people() -> None:
    one, both = (canonical_quantiles(("T1w",), GRID, 0, people)["T1w"] for people in (1, 2))
    mask, truth = (simulated_pair(2, "T1w", GRID, 0)[place] for place in (2, 1))  # the second person
    np.testing.assert_allclose(2 * both - one, np.quantile(truth[mask], QUANTILES), atol=1e-5)
