"""Loads the ICBM-152 template (2009a, symmetric; Fonov et al., 2011) at the spacing of the registration.

``template.npz`` contains nilearn's maps, resampled to this grid. Importing nilearn and resampling took each process
more than a second. A test compares the file with nilearn's maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

SPACE = "MNI152NLin2009aSym"
"""BIDS name of the template's space."""

SPACE_URI = "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"
"""Web page of the template's authors."""

GRID_MM = 3
"""Voxel edge at which scans are registered; finer grids took longer and aligned tissues no better."""

OUTPUT_SHAPE = (197, 233, 189)
"""Voxels of the template's own grid of 1 mm."""

OUTPUT_AFFINE = np.array([[1.0, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1]])
"""``(4, 4)`` voxels of that grid to template millimetres."""

_FILE = Path(__file__).with_name("template.npz")


@dataclass(frozen=True)
class Template:
    """ICBM-152 on a grid of :data:`GRID_MM`, RAS axes.

    Attributes
    ----------
    image:
        ``(I, J, K)`` float32 T1w brain, zero outside.
    brain:
        ``(I, J, K)`` bool.
    tissues:
        ``(3, I, J, K)`` float32 shares of grey matter, white matter and fluid.
    affine:
        ``(4, 4)`` voxels to template millimetres.
    """

    image: np.ndarray
    brain: np.ndarray
    tissues: np.ndarray
    affine: np.ndarray

    @cached_property
    def deep(self) -> np.ndarray:
        """``(I, J, K)`` bool, the brain without its outer 9 mm: its outline says little about a fit, and its rim may
        contain bone."""
        depth_voxels = round(9 / GRID_MM)
        return ndimage.binary_erosion(self.brain, iterations=depth_voxels)

    @property
    def middle(self) -> np.ndarray:
        """``(3,)`` centre of the grid in mm."""
        origin = self.affine[:3, 3]
        last_voxel = np.array(self.image.shape) - 1
        return origin + GRID_MM * last_voxel / 2

    @property
    def top(self) -> float:
        """Height of the brain's top in mm."""
        with_brain = np.flatnonzero(self.brain.any(axis=(0, 1)))
        last_slice = with_brain[-1]
        lowest_mm = self.affine[2, 3]
        return float(lowest_mm + GRID_MM * last_slice)


@cache
def template() -> Template:
    """The template; loaded once per process."""
    with np.load(_FILE, allow_pickle=False) as arrays:
        return Template(arrays["image"], arrays["brain"], arrays["tissues"], arrays["affine"])
