"""Simulates training pairs: a random person seen by a random scanner, and the person's canonical rendering."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from mmh_ray.config import GridConfig
from mmh_ray.imaging.intensity import MonotoneMap, mean_quantile_function, quantile_function, robust_scaling
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SEQUENCES, canonical, random_scanner, render

FIRST_SEED = 1_000_000
"""First seed of simulated people. Seeds of phantom archives are smaller, so that no test person is trained on."""

_TOGETHER = 8
_REUSES = 8
INDICES_PER_PEOPLE = _TOGETHER * _REUSES
"""Two indices at least this far apart belong to different people."""
_DECIMALS = 2
_NOISY_ENDS = 2  # of 257 quantiles


def simulated_pair(
    index: int, sequence: str, grid: GridConfig, seed: int, upper_percentile: float = 99.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``index``-th simulated training example of a sequence.

    See :func:`person_number` for how often a person is used.

    Returns
    -------
    ``(X, Y, Z)`` float32 scan in unit intensity, zero outside the brain; ``(X, Y, Z)`` float32 canonical image, scaled
    so that white matter of T1w or grey matter of T2w is 1; ``(X, Y, Z)`` bool brain.
    """
    number = person_number(index)
    anatomy = simulated_person(seed, number, grid)
    rng = np.random.default_rng([seed, index, SEQUENCES.index(sequence)])
    mask = anatomy.brain
    scanner = random_scanner(rng)
    scan = render(anatomy, scanner, sequence, rng, grid.spacing_mm)
    unit = robust_scaling(scan, mask, upper_percentile).apply(scan)
    shown = np.clip(unit, 0, 2) * mask
    return shown, simulated_truth(seed, number, grid, sequence), mask


def person_number(index: int) -> int:
    """The person of the ``index``-th example.

    In each block of 64 consecutive examples, 8 people are seen by 8 scanners each, two scanners in a row.
    """
    generation = index // INDICES_PER_PEOPLE
    place = index // 2 % _TOGETHER
    return generation * _TOGETHER + place


def canonical_quantiles(
    sequences: Iterable[str], grid: GridConfig, seed: int, people: int = 24
) -> dict[str, np.ndarray]:
    """Mean quantile function ``(257,)`` of the canonical images of simulated people, for each sequence in
    :data:`SEQUENCES`."""
    anatomies = [simulated_person(seed, number, grid) for number in range(people)]
    means = {}
    for sequence in sequences:
        if sequence not in SEQUENCES:
            continue
        functions = []
        for anatomy in anatomies:
            image = canonical(anatomy, sequence, grid.spacing_mm)
            functions.append(quantile_function(image[anatomy.brain]))
        means[sequence] = mean_quantile_function(functions)
    return means


def unifying_map(canonical: np.ndarray, quantiles: np.ndarray) -> MonotoneMap:
    """The map from canonical to unified intensity for the whole simulation, from two quantile functions ``(257,)``.

    A pure tissue has a single intensity in the noise-free images, but a broad peak in a cohort's histogram. Rounding
    the canonical intensities maps the tissue to the middle of that peak; otherwise tiny differences in partial volume
    would be stretched over the whole peak. The ends of the cohort's histogram are noise and are left out.
    """
    without_ends = slice(_NOISY_ENDS, -_NOISY_ENDS)
    rounded = canonical.round(_DECIMALS)
    return MonotoneMap.between(rounded[without_ends], quantiles[without_ends])


@lru_cache(maxsize=2 * _TOGETHER)
def simulated_person(seed: int, number: int, grid: GridConfig) -> Anatomy:
    """A random adult on the working grid; many have lesions or oddities, some large ventricles or a cavity."""
    rng = np.random.default_rng([seed, number, 11])
    person = Person(
        seed=FIRST_SEED + seed * 1_000_000 + number,
        age=rng.uniform(18, 90),
        lesions=int(rng.integers(1, 6)) if rng.random() < 0.4 else 0,
        ventricles=float(rng.choice([0] * 8 + [1, 1, 2, 3])),
        cavities=int(rng.random() < 0.15),
        oddities=int(rng.integers(0, 7)),
    )
    return simulate_anatomy(person, grid.spacing_mm).on_grid(grid)


@lru_cache(maxsize=2 * _TOGETHER)
def simulated_truth(seed: int, number: int, grid: GridConfig, sequence: str) -> np.ndarray:
    """The canonical image of a simulated person on the working grid, zero outside the brain."""
    anatomy = simulated_person(seed, number, grid)
    image = canonical(anatomy, sequence, grid.spacing_mm)
    return image * anatomy.brain
