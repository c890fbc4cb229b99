"""Simulates training examples: a random person seen by a random scanner, and the same person in the unified domain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmh_ray.config import GridConfig
from mmh_ray.imaging.intensity import correct_bias, robust_scaling
from mmh_ray.simulation.anatomy import smooth_noise
from mmh_ray.simulation.head_traits import HeadTraits
from mmh_ray.simulation.label_maps import read_label_map
from mmh_ray.simulation.people import Head, simulate_head, template_head
from mmh_ray.simulation.protocols import random_scan
from mmh_ray.simulation.scanner import canonical_image, random_oddity, render


@dataclass(frozen=True)
class Example:
    """One training pair.

    Attributes
    ----------
    scan:
        ``(X, Y, Z)`` float32 unit intensity, bias-corrected, zero outside the mask: what the model sees.
    truth:
        ``(X, Y, Z)`` float32 unit intensity of the unified domain, zero outside the mask.
    mask:
        ``(X, Y, Z)`` bool, the brain as a brain extraction tool might find it.
    """

    scan: np.ndarray
    truth: np.ndarray
    mask: np.ndarray


def random_traits(rng: np.random.Generator, seed: int) -> HeadTraits:
    """Traits of a random adult; half of them may have lesions, cavities or tumours."""
    is_ill = rng.random() < 0.5
    has_usual_ventricles = rng.random() < 0.7
    ventricles = rng.uniform(0, 1) if has_usual_ventricles else rng.uniform(1, 3)
    atrophy = rng.uniform(0, 0.5)
    has_lesions = is_ill and rng.random() < 0.6
    return HeadTraits(
        seed=seed,
        ventricles=float(ventricles),
        atrophy=float(atrophy),
        lesions=int(rng.integers(1, 12)) if has_lesions else 0,
        cavities=int(is_ill and rng.random() < 0.2),
        tumours=int(is_ill and rng.random() < 0.25),
        oddities=int(rng.integers(0, 5)),
    )


TEMPLATE_SHARE = 0.15
"""Share of people made from ICBM-152 if there are label maps, too."""


@lru_cache(maxsize=8)
def random_head(label_maps: tuple[str, ...], seed: int, grid: GridConfig) -> Head:
    """A person made from one of the label maps, or from ICBM-152; the same seed gives the same bytes."""
    rng = np.random.default_rng([seed, 5])
    traits = random_traits(rng, seed)
    if not label_maps or rng.random() < TEMPLATE_SHARE:
        return template_head(traits, grid)
    path = label_maps[int(rng.integers(len(label_maps)))]
    return simulate_head(read_label_map(path), traits, grid)


def example(head: Head, sequence: str, seed: int, grid: GridConfig, n4_iterations: tuple[int, ...]) -> Example:
    """A head seen by the ``seed``-th scanner of a sequence."""
    rng = np.random.default_rng([seed, 6])
    oddity = random_oddity(rng)
    protocol = random_scan(sequence, rng)
    image = render(head, protocol, rng, grid.spacing_mm, oddity)
    mask = found_brain(head, rng, grid.spacing_mm)
    spacing = (grid.spacing_mm,) * 3
    corrected = correct_bias(image, mask, spacing, n4_iterations)
    unit = robust_scaling(corrected, mask).apply(corrected)
    canonical = canonical_image(head, sequence, oddity)
    return Example(scan=np.clip(unit, 0, 2) * mask, truth=np.clip(canonical, 0, 1.6) * mask, mask=mask)


def found_brain(head: Head, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """The brain mask a tool might find, ``(X, Y, Z)`` bool: exact for some scans, else its border is a few mm off."""
    is_exact = rng.random() < 0.4
    if is_exact:
        return head.brain
    wander = smooth_noise(rng, head.brain.shape, 12 / spacing_mm)
    inset_mm = rng.uniform(-1.5, 2.0)
    wander_mm = rng.uniform(0, 1.2)
    return head.depth_mm > inset_mm + wander_mm * wander
