"""Whole heads of any contrast and where their brain is: examples for training what finds brains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmh_ray.config import GridConfig
from mmh_ray.imaging.brain_extractor import scaled_head
from mmh_ray.simulation.examples import random_person
from mmh_ray.simulation.people import Head, Person, depth, read_label_map, simulate_head
from mmh_ray.simulation.protocols import CANONICAL, any_contrast, random_scan
from mmh_ray.simulation.scanner import random_oddity, render

ANY_CONTRAST = 0.35
"""Share of heads whose tissues have levels of no sequence."""
_TILTED = 0.15
"""Share of heads that lie far from upright."""
_STRIPPED, _DEFACED, _WITHOUT_NECK, _WITHOUT_TOP = 0.12, 0.18, 0.5, 0.1
"""Shares of heads that lack their skull, their face, what lies below, and what lies above."""


def whole_head(
    label_maps: tuple[str, ...], seed: int, grid: GridConfig, sequence: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A head as a scanner gives it; the same seed gives the same bytes.

    ``sequence``: in a protocol of that sequence; by default of any, and some heads in a contrast of none.

    Returns
    -------
    ``(X, Y, Z)`` float32 head, scaled by :func:`scaled_head`, its fields uncorrected; ``(X, Y, Z)`` float32 distance to the surface of
    the brain's hull (:attr:`Head.hull`) in mm, positive inside.
    """
    rng = np.random.default_rng([seed, 8])
    drawn = str(rng.choice(list(CANONICAL)))
    free = rng.random() < ANY_CONTRAST and sequence is None
    scan = any_contrast(rng) if free else random_scan(sequence or drawn, rng)
    path = label_maps[int(rng.integers(len(label_maps)))]
    head = simulate_head(read_label_map(path), _person(rng, seed), grid)
    image = render(head, scan, rng, grid.spacing_mm, random_oddity(rng))
    image = _without_skull_or_face(image, head, rng, grid.spacing_mm)
    seen = _field_of_view(head, rng, grid.spacing_mm)
    return scaled_head(image * seen), depth(head.hull & seen, grid.spacing_mm)


def _person(rng: np.random.Generator, seed: int) -> Person:
    turn_degrees = 25.0 if rng.random() < _TILTED else 8.0
    return replace(random_person(rng, seed), turn_degrees=turn_degrees, shift_mm=8.0)


def _without_skull_or_face(image: np.ndarray, head: Head, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """What was taken off before: the skull of some heads, the face of others; most heads stay whole."""
    kind = rng.random()
    if kind > _STRIPPED + _DEFACED:
        return image
    distance_mm = depth(head.hull, spacing_mm)
    if kind < _STRIPPED:
        return image * (distance_mm > -rng.uniform(0, 6))
    _, length, top = head.hull.shape
    ahead, height = np.ogrid[:length, :top]
    face = ahead - rng.uniform(0.4, 1.2) * height > rng.uniform(0.45, 0.7) * length
    near = distance_mm > -rng.uniform(4, 12)
    return image * (near | ~face[None])


def _field_of_view(head: Head, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """Which slices the scan shows, ``(Z,)`` bool: half of the heads lack what lies below, a few their top."""
    slices = np.arange(head.hull.shape[2])
    occupied = np.flatnonzero(head.hull.any(axis=(0, 1)))
    seen = np.ones(len(slices), bool)
    if rng.random() < _WITHOUT_NECK:
        seen &= slices >= occupied[0] - rng.uniform(-10, 60) / spacing_mm
    if rng.random() < _WITHOUT_TOP:
        seen &= slices < occupied[-1] - rng.uniform(0, 15) / spacing_mm
    return seen
