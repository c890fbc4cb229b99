"""Gaussian smoothing inside a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

FWHM_PER_SIGMA = 2.3548
"""Full width at half maximum of a Gaussian, in standard deviations."""


def smooth_inside(
    data: np.ndarray, mask: np.ndarray, sigma: float | Sequence[float], least_weight: float = 1e-6
) -> np.ndarray:
    """Gaussian mean over the masked voxels of each window; voxels outside the mask have no influence.

    Parameters
    ----------
    data:
        ``(..., X, Y, Z)``; its floating-point type is kept.
    mask:
        ``(X, Y, Z)`` bool.
    sigma:
        Standard deviation in voxels, one or one for each axis.
    least_weight:
        If the mask has less weight than this in a window, the mean is pulled towards 0.
    """
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    inside = np.where(mask, data, 0)
    smooth = ndimage.gaussian_filter(inside, sigma, axes=(-3, -2, -1))
    return smooth / np.maximum(weight, least_weight)
