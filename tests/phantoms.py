"""Abnormal heads: a CT, a tumour and extreme hydrocephalus; and a measure of whether a structure is still visible.

The benchmarks use them too.
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
    """A simulated CT of a head, in Hounsfield units above air.

    Grey matter is a little brighter than white matter, fluid is dark, and the skull is brightest.
    """
    anatomy = simulate_anatomy(Person(seed, scalp=True), spacing_mm)
    brain, scalp = anatomy.fractions.sum(0), anatomy.scalp
    inside = ndimage.binary_fill_holes(brain + scalp > 0.5)
    bone = np.clip(inside - brain - scalp, 0, 1)
    shares = dict(zip(TISSUES, anatomy.fractions, strict=True)) | {"scalp": scalp, "bone": bone}
    data = sum(HOUNSFIELD[tissue] * share for tissue, share in shares.items()) - AIR * (1 - inside)
    noise = np.random.default_rng(seed).normal(0, 4, brain.shape)
    return Volume((data + noise).astype(np.float32), anatomy.affine)


def tumour(anatomy: Anatomy, seed: int, far_from: np.ndarray | None = None) -> tuple[Anatomy, np.ndarray]:
    """Put a ball of lesion tissue with a radius of 16 mm and a fluid core of 6 mm radius into the white matter.

    Returns the anatomy with the tumour and the mask of the lesion tissue, without the core. The tumour keeps a distance
    from the mask ``far_from``.
    """
    rng, spacing = np.random.default_rng(seed), abs(anatomy.affine[0, 0])
    deep = ndimage.binary_erosion(anatomy.brain, iterations=round(18 / spacing)) & (anatomy.fractions[WM] > 0.8)
    if far_from is not None:
        deep &= ~ndimage.binary_dilation(far_from, iterations=6)
    centre = rng.choice(np.argwhere(deep))
    distance = np.linalg.norm(np.moveaxis(np.indices(anatomy.brain.shape), 0, -1) - centre, axis=-1) * spacing
    filled = _filled(_filled(anatomy, distance < 16, LESION), distance < 6, CSF)
    return filled, (distance < 16) & (distance >= 6)


def hydrocephalus(anatomy: Anatomy) -> tuple[Anatomy, np.ndarray]:
    """Enlarge the ventricles to three times their size: fluid replaces the brain nearest to them.

    Returns the changed anatomy and the mask of the new fluid.
    """
    depth = ndimage.distance_transform_edt(anatomy.brain) * abs(anatomy.affine[0, 0])
    ventricles = (anatomy.fractions[CSF] > 0.8) & (depth > 25)
    distance = ndimage.distance_transform_edt(~ventricles)
    wide = distance <= np.sort(distance, axis=None)[3 * ventricles.sum()]
    return _filled(anatomy, wide, CSF), wide & (anatomy.fractions[CSF] < 0.2)


def _filled(anatomy: Anatomy, place: np.ndarray, tissue: int) -> Anatomy:
    """A copy of the anatomy in which the mask ``place`` contains only one tissue."""
    fractions = anatomy.fractions.copy()
    fractions[:, place] = 0
    fractions[tissue, place] = 1
    return replace(anatomy, fractions=fractions)


def contrast_and_volume(image: np.ndarray, place: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Contrast and volume of a structure in an image; ``place`` is the mask of the structure.

    Returns an array of two numbers. The first is the mean inside the mask minus the mean of a shell around it, which is
    two voxels thick, one voxel away, and inside the brain. The second is the number of voxels of mask and shell on the
    structure's side of the midpoint between these means.
    """
    around = ndimage.binary_dilation(place, iterations=3) & ~ndimage.binary_dilation(place) & brain
    inside, outside = image[place].mean(), image[around].mean()
    beyond = (image - (inside + outside) / 2) * np.sign(inside - outside) > 0
    return np.array([inside - outside, (beyond & (place | around)).sum()])
