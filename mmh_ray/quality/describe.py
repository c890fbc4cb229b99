"""Computes the quality measures of a scan and of its harmonized image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mmh_ray.evaluation.metrics.agreement import gradient_correlation
from mmh_ray.imaging.borders import faces_of
from mmh_ray.imaging.grid import box_of, share_held, to_grid
from mmh_ray.imaging.ground import Ground, background, find_ground
from mmh_ray.imaging.intensity import robust_scaling
from mmh_ray.imaging.preprocess import Prepared
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.template import template
from mmh_ray.imaging.volume import Volume
from mmh_ray.quality.cohort import UPPER
from mmh_ray.quality.oddities import mask_offset, second_head, spikes, widest_fluid, wrapped
from mmh_ray.quality.receive_field import without_field

_DARKEST_PERCENT = 2.0
"""Percentile of the voxels around the brain that counts as their darkest."""


def describe_scan(
    volume: Volume, brain: np.ndarray, registration: Registration | None, prepared: Prepared | None = None
) -> dict[str, float]:
    """Measure the scan: ``brain_ml`` and ``background``; if registered, also ``registration``, ``coverage``, contrasts.

    Parameters
    ----------
    brain:
        ``(I, J, K)`` bool mask on the scan's grid.
    prepared:
        The scan on the working grid. It provides the intensity scale for the air; with it, the measures of
        :mod:`mmh_ray.quality.oddities` are added.
    """
    ground = find_ground(volume) if prepared is None else prepared.ground
    cleaned = ground.applied_to(volume)
    scaling = robust_scaling(cleaned.data, brain) if prepared is None else prepared.scaling
    air = _air(cleaned.data, brain, ground)
    figures = {
        "brain_ml": float(brain.sum() * np.prod(volume.spacing) / 1000),
        "background": float(scaling.apply(np.array(air))),
    }
    if prepared is not None:
        figures |= _oddities(volume, cleaned, prepared)
    if registration is None:
        return figures
    tissues = _tissue_means(cleaned, brain, registration, ground.floor)
    holes = None if ground.stripped else ground.holes
    figures |= {
        "registration": registration.quality,
        "coverage": _coverage(cleaned, registration, holes),
        "fluid_contrast": (tissues.fluid - tissues.grey) / tissues.spread,
        "white_contrast": (tissues.white - tissues.grey) / tissues.spread,
    }
    if prepared is None:
        return figures
    if tissues.fluid != tissues.grey:
        grey_unit = float(scaling.apply(np.array(tissues.grey)))
        spacing_mm = float(np.linalg.norm(prepared.affine[:3, 0]))
        is_bright = tissues.fluid > tissues.grey
        figures["widest_fluid"] = widest_fluid(prepared.image, prepared.mask, spacing_mm, grey_unit, is_bright)
    if prepared.given:
        figures["mask_offset"] = mask_offset(cleaned, brain, registration)
    return figures


def _oddities(volume: Volume, cleaned: Volume, prepared: Prepared) -> dict[str, float]:
    """The measures of :mod:`mmh_ray.quality.oddities` that need no registration."""
    ground = prepared.ground
    fill_values = ground.fill.values if ground.fill else ()
    meaningless = (background(volume.data), *fill_values)
    signal = cleaned.like(cleaned.data - np.float32(ground.floor))
    box = box_of(prepared.brain, margin=1)
    return {
        "spikes": float(spikes(prepared.scaling.apply(cleaned.data[box]), prepared.brain[box])),
        "wrapped": float(wrapped(volume.data, meaningless)),
        "fill_step": ground.fill.step if ground.fill else 0.0,
        "second_head": second_head(signal),
    }


def _air(data: np.ndarray, brain: np.ndarray, ground: Ground) -> float:
    """Intensity of the air, in the scan's units: the lower quartile of the volume's faces.

    Padding or a mask may have replaced the air there. So the darkest voxels around the brain count if they are
    brighter.
    """
    faces = float(np.percentile(faces_of(data), 25))
    if ground.stripped:
        return faces
    beside_brain = np.ones(brain.shape, bool)
    box = box_of(brain, margin=2)
    beside_brain[box] = ~ndimage.binary_dilation(brain[box], iterations=2)
    around = beside_brain & (data > ground.floor)
    if not around.any():
        return faces
    darkest_around = float(np.percentile(data[around], _DARKEST_PERCENT))
    return max(faces, darkest_around)


def describe_outcome(source: Volume, harmonized: Volume, brain: np.ndarray) -> dict[str, float]:
    """Measure the result: ``preservation`` of the edges, and the part of the brain that is too ``bright``.

    Both images are on the scan's grid; the harmonized one is in unit intensity.
    """
    is_too_bright = harmonized.data[brain] > UPPER
    return {
        "preservation": gradient_correlation(harmonized.data, source.data, brain),
        "bright": float(is_too_bright.mean()),
    }


def describe_air(harmonized: Volume, ground: Ground) -> dict[str, float]:
    """Brightness of the air after harmonization, ``air_after``: on the faces, or over the fill if that is brighter."""
    air = float(np.percentile(faces_of(harmonized.data), 25))
    if ground.holes is not None:
        in_holes = float(harmonized.data[ground.holes].mean())
        air = max(air, in_holes)
    return {"air_after": air}


class _TissueMeans(NamedTuple):
    """Mean intensity of each tissue deep in the brain, and the standard deviation there, in the scan's units."""

    grey: float
    white: float
    fluid: float
    spread: float


_NO_TISSUES = _TissueMeans(0.0, 0.0, 0.0, 1.0)
"""Used if template and brain do not overlap: no tissue differs from another."""


def _tissue_means(volume: Volume, brain: np.ndarray, registration: Registration, floor: float) -> _TissueMeans:
    """Mean intensities of the tissues deep in the brain, after removing the receive field.

    The rim is left out: an estimated mask contains dura and bone there, which are black in a T2w, while the template
    has fluid.
    """
    icbm = template()
    shape = icbm.brain.shape
    grid = registration.matrix @ icbm.affine
    image = to_grid(volume.data - np.float32(floor), volume.affine, grid, shape)
    brain_share = to_grid(brain.astype(np.float32), volume.affine, grid, shape)
    inside = icbm.deep & (brain_share > 0.5)
    weights = [tissue**3 * inside for tissue in icbm.tissues]  # near 1 only where the tissue is pure
    if not all(weight.any() for weight in weights):
        return _NO_TISSUES
    image = without_field(image, icbm.tissues, inside)
    spread = float(image[inside].std())
    if spread == 0:
        return _NO_TISSUES
    grey, white, fluid = (float(np.average(image, weights=weight)) + floor for weight in weights)
    return _TissueMeans(grey, white, fluid, spread)


def _coverage(volume: Volume, registration: Registration, holes: np.ndarray | None) -> float:
    """Part of the aligned template's brain that lies in the scan's field of view and outside its holes."""
    icbm = template()
    grid = registration.matrix @ icbm.affine
    return share_held(icbm.brain, grid, volume.affine, volume.data.shape, holes)
