"""Brain masks: a given one on the scan's grid, or one for scans that come without."""

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
"""Difference of affines up to which two grids are the same."""

_SURFACE_MM = -1.25
"""Where the brain is taken to end, positive inside: a mask that cuts cortex does more harm than one with some dura. There simulated
heads of held-out people keep .985 of their brain on average (`benchmarks/brain-masks.md`)."""
_LEAST_LITRES = 0.25
"""Least volume of what may be a brain, with the fluid around it: a newborn's."""
_MOST_LITRES = 2.5
"""Most volume of it."""
_EVEN_MM = 25.0
"""Standard deviation of the windows in which a strong receive field is evened out before the brain is found."""
_BRIGHTEST = 4.0
_FAINT = 0.03
"""Share of a scan's bright tissue above which something is more than air, however dim."""
_FAINT_BLUR_MM = 1.5
_LEAST_INSIDE = 0.5
"""Part of a given mask that must lie in the scan's field of view; else the two do not belong together."""


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
        Height of the neck that was left out of the search; None where the search did not mind it.
    """

    mask: np.ndarray
    stripped: bool
    registration: Registration | None = None
    neck_mm: float | None = None


def find_brain(volume: Volume, crop_neck: bool = True, ground: Ground | None = None) -> Brain:
    """Where the scan shows brain.

    The brain of a scan whose skull was removed is what is not background. In any other scan a network finds it, and the template is
    registered to what it found. Where the two do not agree, the template is laid to the whole head, without its neck if so asked, and
    its own brain mask is tried. Where that does not fit either, the network's brain is returned with its poor registration, or the
    template's if the network found none: nothing is raised here. :mod:`mmh_ray.quality.checks` then refuses the scan by the quality of
    its registration.

    Parameters
    ----------
    ground:
        The scan's own; found by default.
    """
    ground = find_ground(volume) if ground is None else ground
    if ground.shown is not None:
        return Brain(ndimage.binary_fill_holes(largest(ground.shown)), stripped=True)
    volume = ground.lay(volume)
    bright = float(np.percentile(volume.data, 99)) - ground.floor
    volume = volume.like((volume.data - ground.floor) / bright)  # no result may depend on the units
    brain = _brain_by_network(volume)
    if brain is not None and _agrees(brain):
        return brain
    by_template = _brain_by_template(volume, crop_neck)
    return by_template if brain is None or _agrees(by_template) else brain


def _agrees(brain: Brain) -> bool:
    """Whether the template's tissues are found where the brain is."""
    return brain.registration is not None and brain.registration.quality >= POOR


def _brain_by_network(volume: Volume) -> Brain | None:
    """The brain that the network finds; None where that is too small or too large for one."""
    from mmh_ray.imaging.brain_extractor import brain_distance  # torch is not loaded for stripped scans

    distance_mm, affine = brain_distance(volume)
    inside = to_grid(distance_mm, affine, volume.affine, volume.data.shape) > _SURFACE_MM
    if not inside.any():
        return None
    mask = ndimage.binary_fill_holes(largest(inside))
    litres = mask.sum() * np.prod(volume.spacing) / 1e6
    if not _LEAST_LITRES <= litres <= _MOST_LITRES:
        return None
    return Brain(mask, False, register_found(volume, mask))


def register_found(volume: Volume, brain: np.ndarray, floor: float = 0.0) -> Registration:
    """The registration of a brain ``(I, J, K)`` bool; where it is poor, without the receive field if it is better so.

    ``floor`` is the level of the scan's air.
    """
    plain = register_brain(volume, brain)
    if plain.quality >= POOR:
        return plain
    signal = volume.like(volume.data - np.float32(floor))
    even = register_brain(evened(signal, brain), brain)
    return even if even.quality >= POOR else plain


def _brain_by_template(volume: Volume, crop_neck: bool) -> Brain:
    """The template's own brain mask, laid to the head; once more without the receive field, which hides tissues from it, where it fails."""
    brain = _brain_in_head(volume, crop_neck)
    if _agrees(brain):
        return brain
    again = _brain_in_head(evened(volume, _shown_faintly(volume)), crop_neck)
    return again if _agrees(again) else brain


def evened(volume: Volume, region: np.ndarray) -> Volume:
    """A scan over its mean in wide windows of a region ``(I, J, K)`` bool, at most :data:`_BRIGHTEST` times that.

    What takes a strong receive field out before anything is known of the tissues: it also takes away slow changes of the tissues, and is
    good for nothing but finding the brain.

    Parameters
    ----------
    volume:
        The scan, 0 where there is no signal.
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
    """All that is brighter than air, however dim, with its holes, ``(I, J, K)`` bool."""
    sigma = [_FAINT_BLUR_MM / size for size in volume.spacing]
    smooth = ndimage.gaussian_filter(volume.data, sigma)
    shown = ndimage.binary_fill_holes(smooth > _FAINT)
    return largest(shown)


def _brain_in_head(volume: Volume, crop_neck: bool) -> Brain:
    tissue = foreground(volume)
    head = largest(ndimage.binary_fill_holes(tissue))
    head, neck_mm = without_neck(volume, head) if crop_neck else (head, 0.0)
    registration = register_head(volume, head)
    known = template()
    affine = registration.matrix @ known.affine
    near = to_grid(known.brain, affine, volume.affine, volume.data.shape) > 0.3
    inside = near & tissue
    radius = [max(1, round(2.0 / size)) for size in volume.spacing]
    opened = dilated(eroded(inside, radius), radius)  # cuts the bridges to the scalp
    core = largest(opened if opened.any() else inside)
    grown = dilated(core, radius) & near
    return Brain(ndimage.binary_fill_holes(grown), False, registration, neck_mm)


def on_grid_of(volume: Volume, mask: Volume) -> tuple[np.ndarray, bool]:
    """A given brain mask on the scan's grid, ``(I, J, K)`` bool, and whether it had to be resampled through the affines.

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
        remedy = "Check the affines of mask and scan, or leave it out."
        raise MaskError(received, f"{_LEAST_INSIDE:.0%} or more", remedy)
    return resampled, True
