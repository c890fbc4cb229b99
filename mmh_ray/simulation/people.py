"""Simulates people with their pathology: whole heads from deformed label maps, and brains from ICBM-152.

Shapes: ``T`` tissues (:data:`mmh_ray.simulation.tissues.TISSUES`), ``X Y Z`` the working grid (R, A, S).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mmh_ray.config import GridConfig
from mmh_ray.simulation.anatomy import Person, lost_cortex, simulate_anatomy, smooth_noise
from mmh_ray.simulation.deformation import deformed_shares
from mmh_ray.simulation.findings import place_findings
from mmh_ray.simulation.head_traits import HeadTraits
from mmh_ray.simulation.label_maps import LabelMap
from mmh_ray.simulation.tissues import BRAIN, FAT, FLUID, GREY, SOFT, TISSUES, WHITE

_DURA_MM = 4.0
"""Radius of the closing that includes the dura between the hemispheres, as brain extraction tools do."""


@dataclass(frozen=True)
class Head:
    """Tissue shares of one person on the working grid.

    Attributes
    ----------
    fractions:
        ``(T, X, Y, Z)`` float16; they sum to 1 where there is no air.
    texture:
        ``(X, Y, Z)`` float32 factor of the signal, about 1: no tissue is perfectly uniform.
    brain:
        ``(X, Y, Z)`` bool: voxels that are more than half brain, including the fluid around it.
    depth_mm:
        ``(X, Y, Z)`` float32 distance from the brain's surface, positive inside.
    """

    fractions: np.ndarray
    texture: np.ndarray
    brain: np.ndarray
    depth_mm: np.ndarray


def simulate_head(label_map: LabelMap, traits: HeadTraits, grid: GridConfig) -> Head:
    """Deform a head and place its pathology; the same traits give the same bytes."""
    rng = np.random.default_rng([traits.seed, 17])
    fractions = deformed_shares(label_map, traits, grid, rng)
    _thin_cortex(fractions, traits.atrophy, grid.spacing_mm)
    _give_fat(fractions, grid.spacing_mm, rng)
    return _finished(fractions, traits, grid.spacing_mm, rng)


def template_head(traits: HeadTraits, grid: GridConfig) -> Head:
    """Deform ICBM-152's tissue shares: no skull and no deep nuclei, but no label map is needed either."""
    rng = np.random.default_rng([traits.seed, 18])
    age = 20 + 120 * traits.atrophy
    template_person = Person(traits.seed, age=age, ventricles=traits.ventricles)
    brain = simulate_anatomy(template_person, grid.spacing_mm).on_grid(grid)
    fractions = np.zeros((len(TISSUES), *grid.shape), np.float32)
    fractions[[FLUID, GREY, WHITE]] = brain.fractions[:3]  # the fourth, lesion, is empty
    return _finished(fractions, traits, grid.spacing_mm, rng)


def _thin_cortex(fractions: np.ndarray, share: float, spacing_mm: float) -> None:
    """Turn a share of the grey matter next to fluid into fluid, in place."""
    if not share:
        return
    lost = lost_cortex(fractions[FLUID], fractions[GREY], share, spacing_mm)
    fractions[FLUID] += lost
    fractions[GREY] -= lost


def _give_fat(fractions: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> None:
    """Turn part of the soft tissue into fat, in place: label maps do not separate muscle and fat."""
    wander = smooth_noise(rng, fractions.shape[1:], 12 / spacing_mm)
    mean_share = rng.uniform(-0.2, 1.0)
    wandering_share = mean_share + 0.4 * wander
    share = np.clip(wandering_share, 0, 1).astype(np.float32)
    fat = share * fractions[SOFT]
    fractions[FAT] += fat
    fractions[SOFT] -= fat


def _finished(fractions: np.ndarray, traits: HeadTraits, spacing_mm: float, rng: np.random.Generator) -> Head:
    """Complete a head: place its pathology in the tissue shares ``(T, X, Y, Z)``, add brain, depth and texture."""
    place_findings(fractions, traits, spacing_mm, rng)
    brain = fractions[list(BRAIN)].sum(axis=0) > 0.5
    brain = _closed(brain, spacing_mm)
    fine = smooth_noise(rng, brain.shape, 4.0 / spacing_mm)
    wide = smooth_noise(rng, brain.shape, 15.0 / spacing_mm)
    fine_strength = rng.uniform(0.0, 0.03)
    wide_strength = rng.uniform(0.0, 0.03)
    texture = 1 + fine_strength * fine + wide_strength * wide
    return Head(
        fractions=fractions.astype(np.float16),
        texture=texture.astype(np.float32),
        brain=brain,
        depth_mm=depth_in(brain, spacing_mm),
    )


def _closed(region: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Close a brain mask over the dura between the hemispheres, and fill its holes."""
    radius = max(1, round(_DURA_MM / spacing_mm))
    padded = np.pad(region, radius)
    neighbours = ndimage.generate_binary_structure(3, 1)
    closed = ndimage.binary_closing(padded, neighbours, iterations=radius)
    without_padding = (slice(radius, -radius),) * 3
    return ndimage.binary_fill_holes(closed)[without_padding]


def depth_in(inside: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Distance from the surface of a region ``(X, Y, Z)`` bool in mm, float32, positive inside."""
    inward = ndimage.distance_transform_edt(inside) - 0.5
    outward = ndimage.distance_transform_edt(~inside) - 0.5
    return (np.where(inside, inward, -outward) * spacing_mm).astype(np.float32)
