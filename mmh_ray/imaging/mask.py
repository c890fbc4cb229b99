"""Brain masks: estimates one, or resamples the user's to the scan's grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mmh_ray.errors import MaskError
from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.ground import Ground, find_ground
from mmh_ray.imaging.head import dilated, eroded, foreground, largest, without_neck
from mmh_ray.imaging.registration import POOR, Registration, register_brain, register_head
from mmh_ray.imaging.smoothing import smooth_inside
from mmh_ray.imaging.template import template
from mmh_ray.imaging.volume import Volume

SAME_AFFINE_MM = 1e-3
"""Largest difference of two affines that count as the same grid."""

_SURFACE_MM = -1.25
"""Distance, positive inside, at which the brain ends: a mask that cuts cortex does more harm than one with some dura.

With this value, simulated heads of held-out people keep .985 of their brain on average (`benchmarks/brain-masks.md`).
"""
_LEAST_LITRES = 0.25
"""Smallest volume of a brain with the fluid around it: a newborn's."""
_MOST_LITRES = 2.5
"""Largest volume of a brain with the fluid around it."""
_EVEN_MM = 25.0
"""Standard deviation of the windows by whose mean a strong receive field is divided out before the brain is found."""
_BRIGHTEST = 4.0
"""Largest intensity after that, in units of the window's mean."""
_FAINT = 0.03
"""Share of a scan's bright tissue above which a voxel is not air, however dim it is."""
_FAINT_BLUR_MM = 1.5
_LEAST_INSIDE = 0.5
"""Part of a user's mask that must lie in the scan's field of view; if less does, the two do not belong together."""


@dataclass(frozen=True)
class Brain:
    """The brain of a scan.

    Attributes
    ----------
    mask:
        ``(I, J, K)`` bool.
    registration:
        Position of the template in the scan; None if it was not needed to find the brain.
    neck_mm:
        Height of the neck that was excluded from the search; None if the search did not crop the neck.
    """

    mask: np.ndarray
    registration: Registration | None = None
    neck_mm: float | None = None


def find_brain(volume: Volume, crop_neck: bool = True, ground: Ground | None = None) -> Brain:
    """Find the brain of a scan.

    - If the skull was removed, the brain is everything that is not background.
    - Otherwise a network finds it, and the template is registered to the result.
    - If the two do not agree, the template is registered to the whole head (without the neck if ``crop_neck``), and the
      template's own brain mask is used.
    - If that does not fit either, the network's brain is returned with its poor registration, or the template's if the
      network found none. Nothing is raised here: :mod:`mmh_ray.quality.checks` then refuses the scan because of the
      quality of its registration.

    Parameters
    ----------
    ground:
        The scan's zero level and fill; computed by default.
    """
    ground = find_ground(volume) if ground is None else ground
    if ground.shown is not None:
        return Brain(ndimage.binary_fill_holes(largest(ground.shown)))
    volume = ground.applied_to(volume)
    bright = float(np.percentile(volume.data, 99)) - ground.floor
    volume = volume.like((volume.data - ground.floor) / bright)  # so that the result does not depend on the units
    brain = _brain_by_network(volume)
    if brain is not None and _agrees(brain):
        return brain
    by_template = _brain_by_template(volume, crop_neck)
    return by_template if brain is None or _agrees(by_template) else brain


def _agrees(brain: Brain) -> bool:
    """Whether the template fits the tissues inside the brain mask."""
    return brain.registration is not None and brain.registration.quality >= POOR


def _brain_by_network(volume: Volume) -> Brain | None:
    """The brain that the network finds; None if it is too small or too large to be one."""
    from mmh_ray.imaging.brain_extractor import brain_distance  # stripped scans do not need torch

    distance_mm, affine = brain_distance(volume)
    inside = to_grid(distance_mm, affine, volume.affine, volume.data.shape) > _SURFACE_MM
    if not inside.any():
        return None
    mask = ndimage.binary_fill_holes(largest(inside))
    litres = mask.sum() * np.prod(volume.spacing) / 1e6
    if not _LEAST_LITRES <= litres <= _MOST_LITRES:
        return None
    return Brain(mask, register_found(volume, mask))


def register_found(volume: Volume, brain: np.ndarray, floor: float = 0.0) -> Registration:
    """Register a brain ``(I, J, K)`` bool; if the fit is poor, try again with the receive field divided out.

    ``floor`` is the level of the scan's air.
    """
    plain = register_brain(volume, brain)
    if plain.quality >= POOR:
        return plain
    signal = volume.like(volume.data - np.float32(floor))
    even = register_brain(evened(signal, brain), brain)
    return even if even.quality >= POOR else plain


def _brain_by_template(volume: Volume, crop_neck: bool) -> Brain:
    """The template's brain mask, registered to the head; if the fit is poor, again with the receive field divided
    out."""
    brain = _brain_in_head(volume, crop_neck)
    if _agrees(brain):
        return brain
    again = _brain_in_head(evened(volume, _shown_faintly(volume)), crop_neck)
    return again if _agrees(again) else brain


def evened(volume: Volume, region: np.ndarray) -> Volume:
    """Divide a scan by its mean in wide windows of a region ``(I, J, K)`` bool, and clip it at :data:`_BRIGHTEST`.

    This removes a strong receive field before anything is known about the tissues. It also removes slow changes of the
    tissues, so the result is only good for finding the brain.

    Parameters
    ----------
    volume:
        The scan; 0 is zero signal.
    """
    if not region.any():
        return volume
    width = [_EVEN_MM / size for size in volume.spacing]
    mean = smooth_inside(volume.data, region, width, least_weight=1e-3)
    least = float(mean[region].min())
    mean = np.where(region, mean, least)
    divisor = np.maximum(mean, max(least, 1e-6))
    relative = np.clip(volume.data / divisor, 0, _BRIGHTEST)
    return volume.like(relative.astype(np.float32))


def _shown_faintly(volume: Volume) -> np.ndarray:
    """Everything brighter than air, however dim, with its holes filled, ``(I, J, K)`` bool."""
    sigma = [_FAINT_BLUR_MM / size for size in volume.spacing]
    smooth = ndimage.gaussian_filter(volume.data, sigma)
    shown = ndimage.binary_fill_holes(smooth > _FAINT)
    return largest(shown)


def _brain_in_head(volume: Volume, crop_neck: bool) -> Brain:
    tissue = foreground(volume)
    head = largest(ndimage.binary_fill_holes(tissue))
    head, neck_mm = without_neck(volume, head) if crop_neck else (head, 0.0)
    registration = register_head(volume, head)
    icbm = template()
    affine = registration.matrix @ icbm.affine
    near = to_grid(icbm.brain, affine, volume.affine, volume.data.shape) > 0.3
    inside = near & tissue
    radius = [max(1, round(2.0 / size)) for size in volume.spacing]
    opened = dilated(eroded(inside, radius), radius)  # cuts bridges to the scalp
    core = largest(opened if opened.any() else inside)
    grown = dilated(core, radius) & near
    return Brain(ndimage.binary_fill_holes(grown), registration, neck_mm)


def on_grid_of(volume: Volume, mask: Volume) -> tuple[np.ndarray, bool]:
    """Bring a user's brain mask to the scan's grid; returns ``(I, J, K)`` bool and whether it had to be resampled.

    Raises
    ------
    MaskError
        If less than half of the mask lies in the scan's field of view.
    """
    brain = mask.data > 0.5
    shape = volume.data.shape
    if brain.shape == shape and np.allclose(mask.affine, volume.affine, atol=SAME_AFFINE_MM):
        return brain, False
    resampled = to_grid(brain, mask.affine, volume.affine, shape) > 0.5
    brain_mm3 = brain.sum() * np.prod(mask.spacing)
    resampled_mm3 = resampled.sum() * np.prod(volume.spacing)
    share_inside = resampled_mm3 / max(1.0, brain_mm3)
    if brain.any() and share_inside < _LEAST_INSIDE:
        received = f"a mask of which {share_inside:.0%} lies in the scan's field of view"
        remedy = "Check the affines of mask and scan, or leave the mask out."
        raise MaskError(received, f"{_LEAST_INSIDE:.0%} or more", remedy)
    return resampled, True
