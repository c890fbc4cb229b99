"""Brain masks for scans that come without one."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from mmh_ray.imaging.volume import Volume


def estimate_mask(volume: Volume) -> np.ndarray:
    """Where the scan shows tissue, ``(I, J, K)`` bool.

    A scan that is zero over a good part of its field of view is taken as stripped: its brain is what is not zero.
    Any other scan gets its largest bright component, filled.
    """
    data = volume.data
    if is_stripped(data):
        return ndimage.binary_fill_holes(_largest(data > 0))
    smooth = ndimage.gaussian_filter(data, [2.0 / size for size in volume.spacing])
    root = np.sqrt(
        np.clip(smooth, 0, np.percentile(smooth, 99))
    )  # evens out the classes, so that dim tissue is not lost
    foreground = root > threshold_otsu(root)
    return ndimage.binary_fill_holes(_largest(foreground))


def is_stripped(data: np.ndarray) -> bool:
    """Whether the skull was removed: more than 40 % of the voxels are exactly zero."""
    return float((data == 0).mean()) > 0.4


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if count > 1 else mask
