"""Simulated training pairs: a random person seen by a random scanner, and the canonical noise-free rendering of the
same."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from mmh_ray.config import GridConfig
from mmh_ray.imaging.grid import cut_out, working_affine
from mmh_ray.imaging.intensity import MonotoneMap, mean_quantile_function, quantile_function, robust_scaling
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SEQUENCES, canonical, random_scanner, render

FIRST_SEED = 1_000_000
"""Seeds of simulated people start here; those of phantom archives stay below, so that no test person is trained on."""

_TOGETHER = 8
_REUSES = 8
INDICES_PER_PEOPLE = _TOGETHER * _REUSES
"""Indices so far apart are of different people."""
_DECIMALS = 2
_NOISY_ENDS = 2  # of 257 quantiles


def simulated_pair(
    index: int, sequence: str, grid: GridConfig, seed: int, upper_percentile: float = 99.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``index``-th simulated training example of a sequence.

    A person is drawn anew every 8 uses: of 64 consecutive indices, 8 people are seen by 8 scanners each, by two in a
    row.

    Returns
    -------
    ``(X, Y, Z)`` float32 scan in unit intensity, zero outside the brain; ``(X, Y, Z)`` float32 canonical image in its
    own units (white matter of T1w, grey matter of T2w at 1); ``(X, Y, Z)`` bool brain.
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
    """The person of the ``index``-th example: of 64 consecutive ones, 8 people are seen by 8 scanners each, by two in a
    row."""
    generation = index // INDICES_PER_PEOPLE
    place = index // 2 % _TOGETHER
    return generation * _TOGETHER + place


def canonical_quantiles(
    sequences: Iterable[str], grid: GridConfig, seed: int, people: int = 24
) -> dict[str, np.ndarray]:
    """Mean quantile function ``(257,)`` of the canonical images of simulated people, per sequence that can be
    simulated."""
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
    """The one map of the whole simulation from canonical to unified intensity, of the two quantile functions
    ``(257,)``.

    A pure tissue is one intensity of the noise-free images and a broad peak of a cohort's histogram: it goes to the
    middle of that peak, not from one end of it to the other with the last thousandth of its partial volume. The ends of
    a cohort's histogram are noise and take no part.
    """
    without_ends = slice(_NOISY_ENDS, -_NOISY_ENDS)
    rounded = canonical.round(_DECIMALS)
    return MonotoneMap.between(rounded[without_ends], quantiles[without_ends])


@lru_cache(maxsize=2 * _TOGETHER)
def simulated_person(seed: int, number: int, grid: GridConfig) -> Anatomy:
    """A person of any adult age, many with lesions, some with large ventricles, a cavity or oddities, on the working
    grid."""
    rng = np.random.default_rng([seed, number, 11])
    person = Person(
        seed=FIRST_SEED + seed * 1_000_000 + number,
        age=rng.uniform(18, 90),
        lesions=int(rng.integers(1, 6)) if rng.random() < 0.4 else 0,
        ventricles=float(rng.choice([0] * 8 + [1, 1, 2, 3])),
        cavities=int(rng.random() < 0.15),
        oddities=int(rng.integers(0, 7)),
    )
    return _on_grid(simulate_anatomy(person, grid.spacing_mm), grid)


@lru_cache(maxsize=2 * _TOGETHER)
def simulated_truth(seed: int, number: int, grid: GridConfig, sequence: str) -> np.ndarray:
    """The canonical image of a simulated person on the working grid, zero outside the brain."""
    anatomy = simulated_person(seed, number, grid)
    image = canonical(anatomy, sequence, grid.spacing_mm)
    return image * anatomy.brain


def _on_grid(anatomy: Anatomy, grid: GridConfig) -> Anatomy:
    """Crop or pad to the working grid, centred on the brain by whole voxels."""
    affine = working_affine(anatomy.affine, anatomy.brain, grid)
    fractions = [cut_out(share, anatomy.affine, affine, grid.shape) for share in anatomy.fractions]
    scalp = cut_out(anatomy.scalp, anatomy.affine, affine, grid.shape)
    return Anatomy(np.stack(fractions), scalp, affine)
