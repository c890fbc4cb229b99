"""Heads that no test may call ordinary: a CT, a tumour, extreme hydrocephalus; and whether a structure is still to be seen.

The benchmarks show them to the model, too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.anatomy import TISSUES, Anatomy, Person, simulate_anatomy

CSF, _, WM, LESION = range(4)
HOUNSFIELD = {"CSF": 8.0, "GM": 37.0, "WM": 28.0, "lesion": 30.0, "scalp": 60.0, "bone": 1000.0}
AIR = 1000.0


def computed_tomography(seed: int, spacing_mm: float = 2.0) -> Volume:
    """A simulated head in Hounsfield units above air: grey matter a little brighter than white, fluid dark, a skull brighter than all."""
    anatomy = simulate_anatomy(Person(seed, scalp=True), spacing_mm)
    brain, scalp = anatomy.fractions.sum(0), anatomy.scalp
    inside = ndimage.binary_fill_holes(brain + scalp > 0.5)
    bone = np.clip(inside - brain - scalp, 0, 1)
    shares = dict(zip(TISSUES, anatomy.fractions, strict=True)) | {"scalp": scalp, "bone": bone}
    data = sum(HOUNSFIELD[tissue] * share for tissue, share in shares.items()) - AIR * (1 - inside)
    noise = np.random.default_rng(seed).normal(0, 4, brain.shape)
    return Volume((data + noise).astype(np.float32), anatomy.affine)


def tumour(anatomy: Anatomy, seed: int, far_from: np.ndarray | None = None) -> tuple[Anatomy, np.ndarray]:
    """A ball of 16 mm radius of lesion tissue with a fluid core of 6 mm in the white matter, and its place."""
    rng, spacing = np.random.default_rng(seed), abs(anatomy.affine[0, 0])
    deep = ndimage.binary_erosion(anatomy.brain, iterations=round(18 / spacing)) & (anatomy.fractions[WM] > 0.8)
    if far_from is not None:
        deep &= ~ndimage.binary_dilation(far_from, iterations=6)
    centre = rng.choice(np.argwhere(deep))
    distance = np.linalg.norm(np.moveaxis(np.indices(anatomy.brain.shape), 0, -1) - centre, axis=-1) * spacing
    filled = _filled(_filled(anatomy, distance < 16, LESION), distance < 6, CSF)
    return filled, (distance < 16) & (distance >= 6)


def hydrocephalus(anatomy: Anatomy) -> tuple[Anatomy, np.ndarray]:
    """Ventricles of three times their size, with fluid in place of the brain nearest to them, and the place of what is new."""
    depth = ndimage.distance_transform_edt(anatomy.brain) * abs(anatomy.affine[0, 0])
    ventricles = (anatomy.fractions[CSF] > 0.8) & (depth > 25)
    distance = ndimage.distance_transform_edt(~ventricles)
    wide = distance <= np.sort(distance, axis=None)[3 * ventricles.sum()]
    return _filled(anatomy, wide, CSF), wide & (anatomy.fractions[CSF] < 0.2)


def _filled(anatomy: Anatomy, place: np.ndarray, tissue: int) -> Anatomy:
    """The anatomy with nothing but one tissue in a place."""
    fractions = anatomy.fractions.copy()
    fractions[:, place] = 0
    fractions[tissue, place] = 1
    return replace(anatomy, fractions=fractions)


def contrast_and_volume(image: np.ndarray, place: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Mean of a place less that of what lies two voxels around it, and voxels there beyond the middle between the two."""
    around = ndimage.binary_dilation(place, iterations=3) & ~ndimage.binary_dilation(place) & brain
    inside, outside = image[place].mean(), image[around].mean()
    beyond = (image - (inside + outside) / 2) * np.sign(inside - outside) > 0
    return np.array([inside - outside, (beyond & (place | around)).sum()])
