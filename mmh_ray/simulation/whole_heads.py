"""Simulates whole heads of any contrast with the distance to their brain: training examples for brain extraction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmh_ray.config import GridConfig
from mmh_ray.imaging.brain_extractor import scaled_head
from mmh_ray.simulation.examples import random_traits
from mmh_ray.simulation.head_traits import HeadTraits
from mmh_ray.simulation.label_maps import read_label_map
from mmh_ray.simulation.people import Head, depth_in, simulate_head
from mmh_ray.simulation.protocols import CANONICAL, any_contrast, random_scan
from mmh_ray.simulation.scanner import random_oddity, render

ANY_CONTRAST = 0.35
"""Share of heads with random tissue levels that belong to no sequence."""
_TILTED = 0.15
"""Share of heads that are strongly tilted."""
_STRIPPED = 0.05
"""Share of heads that lack their skull."""
_DEFACED = 0.18
"""Share of heads that lack their face."""
_WITHOUT_NECK = 0.5
"""Share of heads that are cut below the brain, or through its lower part."""
_WITHOUT_TOP = 0.1
"""Share of heads that lack their top."""


def whole_head(
    label_maps: tuple[str, ...], seed: int, grid: GridConfig, sequence: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a scan of a head; the same seed gives the same bytes.

    ``sequence``: the sequence of the protocol; by default any sequence, and for some heads random tissue levels.

    Returns
    -------
    ``(X, Y, Z)`` float32 head, scaled by :func:`scaled_head`, without bias correction; ``(X, Y, Z)`` float32 distance
    from the surface of the brain with the fluid around it (:attr:`Head.brain`) in mm, positive inside.
    """
    rng = np.random.default_rng([seed, 8])
    drawn_sequence = str(rng.choice(list(CANONICAL)))
    is_any_contrast = rng.random() < ANY_CONTRAST and sequence is None
    scan = any_contrast(rng) if is_any_contrast else random_scan(sequence or drawn_sequence, rng)
    path = label_maps[int(rng.integers(len(label_maps)))]
    label_map = read_label_map(path)
    traits = _drawn_traits(rng, seed)
    head = simulate_head(label_map, traits, grid)
    oddity = random_oddity(rng)
    image = render(head, scan, rng, grid.spacing_mm, oddity)
    kept = _kept_by_tools(head, rng)
    shown = kept & _field_of_view(head, rng, grid.spacing_mm)
    return scaled_head(image * shown), depth_in(head.brain & shown, grid.spacing_mm)


def _drawn_traits(rng: np.random.Generator, seed: int) -> HeadTraits:
    turn_degrees = 25.0 if rng.random() < _TILTED else 8.0
    return replace(random_traits(rng, seed), turn_degrees=turn_degrees, shift_mm=8.0)


def _kept_by_tools(head: Head, rng: np.random.Generator) -> np.ndarray:
    """The voxels that earlier tools left, ``(X, Y, Z)`` bool: some heads lack the skull, others the face; most are
    whole."""
    kind = rng.random()
    if kind < _STRIPPED:
        return head.depth_mm > rng.uniform(-3, 3)
    if kind > _STRIPPED + _DEFACED:
        return np.ones_like(head.brain)
    _, length, top = head.brain.shape
    ahead, height = np.ogrid[:length, :top]
    slope = rng.uniform(0.4, 1.2)
    front = rng.uniform(0.45, 0.7) * length
    face = ahead - slope * height > front
    is_near_brain = head.depth_mm > -rng.uniform(1, 9)
    return is_near_brain | ~face[None]


def _field_of_view(head: Head, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """The slices in the field of view, ``(Z,)`` bool: half of the heads are cut below the brain, a few at the top."""
    slices = np.arange(head.brain.shape[2])
    occupied = np.flatnonzero(head.brain.any(axis=(0, 1)))
    seen = np.ones(len(slices), bool)
    if rng.random() < _WITHOUT_NECK:
        left_below_mm = rng.uniform(-10, 60)  # negative: the lowest part of the brain is cut off
        seen &= slices >= occupied[0] - left_below_mm / spacing_mm
    if rng.random() < _WITHOUT_TOP:
        lost_mm = rng.uniform(0, 15)
        seen &= slices < occupied[-1] - lost_mm / spacing_mm
    return seen
