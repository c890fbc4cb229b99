"""Brain masks for scans that come without one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.head import foreground, largest, without_neck
from mmh_ray.imaging.registration import Registration, register_head
from mmh_ray.imaging.template import template
from mmh_ray.imaging.volume import Volume

_LARGEST_BRAIN_ML = 2100.0


@dataclass(frozen=True)
class Brain:
    """What was found in a scan.

    Attributes
    ----------
    mask:
        ``(I, J, K)`` bool.
    stripped:
        Whether the skull was removed already.
    registration:
        By which it was found; None where the skull was removed already.
    neck_mm:
        Height of the neck that was left out of it.
    """

    mask: np.ndarray
    stripped: bool
    registration: Registration | None = None
    neck_mm: float = 0.0


def find_brain(volume: Volume, crop_neck: bool = True) -> Brain:
    """Where the scan shows brain.

    The brain of a scan whose skull was removed is what is not zero; that takes no registration. On any other scan
    the template is laid by registration to the head, without its neck if so asked, and its brain mask, a little widened, is
    kept where the scan is brighter than air and bone.
    """
    if is_stripped(volume):
        return Brain(ndimage.binary_fill_holes(largest(volume.data > 0)), stripped=True)
    volume = volume.like(volume.data / np.percentile(np.abs(volume.data), 99))  # no result may hang on the units
    bright = foreground(volume)
    head = largest(ndimage.binary_fill_holes(bright))
    head, neck_mm = without_neck(volume, head) if crop_neck else (head, 0.0)
    registration = register_head(volume, head)
    known = template()
    affine = registration.matrix @ known.affine
    near = to_grid(known.brain, affine, volume.affine, volume.data.shape) > 0.3
    inside = near & bright
    radius = [max(1, round(2.0 / size)) for size in volume.spacing]
    opened = ndimage.binary_opening(inside, np.ones([2 * r + 1 for r in radius]))  # cuts the bridges to the scalp
    core = largest(opened if opened.any() else inside)
    grown = ndimage.binary_dilation(core, np.ones([2 * r + 1 for r in radius])) & near
    return Brain(ndimage.binary_fill_holes(grown), False, registration, neck_mm)


def is_stripped(volume: Volume) -> bool:
    """Whether the skull was removed: most voxels are exactly zero, and the others are no more than a brain."""
    voxel_ml = float(np.prod(volume.spacing)) / 1000
    return float((volume.data == 0).mean()) > 0.4 and float((volume.data != 0).sum()) * voxel_ml < _LARGEST_BRAIN_ML
