"""The way back from the network's image to the scan: one curve, one smooth field, and less noise.

What a scanner does to an image is taken for an increasing curve of its intensities and a smooth field. These two are all that the
network, which sees the scan on a coarse grid and may err, is asked for: they are fitted between the scan and the network's image there
and applied to the scan's own voxels. So every edge and lesion is the scan's, and what the network invents, blurs or erases stays in its
own image. Where that differs from the scan under curve and field by no more than noise does, it takes the noise away (Lee, TPAMI 1980).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from sklearn.isotonic import IsotonicRegression

from mmh_ray.imaging.intensity import SMOOTHING, MonotoneMap

NOISE = 0.019
"""Standard deviation, in unit intensity, of the noise that is left in every scan of the unified domain: a part of its look, too."""

FIELD_MM = 20.0
"""Standard deviation of the smoothing that tells a field from a structure."""

_BINS = 256
"""Voxels are ordered by the scan's intensity and put into so many bins; their medians are the curve's knots."""
_SMOOTH_BINS = 4.0
"""Standard deviation, in bins, of the smoothing of the curve."""
_RISE = 1e-6
"""Least rise of knots and curve from bin to bin, so that both can be read backwards."""
_DARK = 20
"""One in so many bins, the darkest, are lifted by no more than a straight line to 0 lifts them: bone and vessels at the brain's border, of
which the network knows little, and through them what lies around the brain."""
_ROUNDS = 3
"""Times that curve and field are fitted in turn."""
_BELIEVED = 1.1
"""Factor up to which a voxel may ask for another field than its surroundings have: what asks for more is a structure."""
_STRONGEST = 2.0
"""Factor up to which the field may change the scan."""


def fit_curve(scan: np.ndarray, styled: np.ndarray, mask: np.ndarray) -> MonotoneMap:
    """The increasing curve that leads from the scan to the network's image; 0 stays 0.

    Through the medians of the network's image over the scan's intensities, both slightly smoothed, by isotonic regression (Barlow et al.,
    1972): a place that the network treats unlike the rest has little influence. Above its upper end it goes on with its mean slope, so that
    what enhances with contrast agent keeps its contrast.

    Parameters
    ----------
    scan, styled:
        ``(X, Y, Z)`` unit intensity on the working grid.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    """
    plain, wanted = _soft(scan, mask, SMOOTHING)[mask], _soft(styled, mask, SMOOTHING)[mask]
    bins = np.array_split(np.argsort(plain, kind="stable"), min(_BINS, plain.size))
    knots, heights = (np.array([np.median(values[part]) for part in bins], np.float64) for values in (plain, wanted))
    heights = IsotonicRegression().fit_transform(np.arange(len(knots)), heights)
    change = ndimage.gaussian_filter1d(
        heights - knots, _SMOOTH_BINS, mode="nearest"
    )  # a curve that changes nothing is kept
    rise = _RISE * np.arange(len(knots))
    heights, knots = np.maximum.accumulate(knots + change) + rise, np.maximum.accumulate(knots) + rise
    dark = len(knots) // _DARK
    heights[:dark] = np.minimum(heights[:dark], heights[dark] * knots[:dark] / max(knots[dark], 1e-6))
    slope = (heights[-1] - heights[0]) / (knots[-1] - knots[0])
    above = knots > 1e-3
    return MonotoneMap(
        np.array([0.0, *knots[above], knots[-1] + 10]),
        np.maximum([0.0, *heights[above], heights[-1] + 10 * slope], 0),
    )


def fit_look(
    scan: np.ndarray, styled: np.ndarray, mask: np.ndarray, spacing_mm: float
) -> tuple[MonotoneMap, np.ndarray]:
    """The curve, and the field ``(X, Y, Z)`` float32, for which ``curve(field * scan)`` is most like the network's image.

    The field is the local least-squares factor between the scan and what the curve, read backwards, makes of the network's image; bright
    tissue counts most. It is continued outside the mask.

    Parameters
    ----------
    scan, styled:
        ``(X, Y, Z)`` unit intensity on the working grid.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    spacing_mm:
        Voxel edge.
    """
    field = np.ones(scan.shape, np.float32)
    scan = np.where(mask, np.clip(scan, 0, None), 0).astype(np.float32)
    weight = np.maximum(ndimage.gaussian_filter(scan**2, FIELD_MM / spacing_mm), 1e-6)
    for _ in range(_ROUNDS):
        curve = fit_curve(field * scan, styled, mask)
        before = np.interp(styled, curve.target, curve.source)
        before = np.clip(before, field * scan / _BELIEVED, field * scan * _BELIEVED)
        field = ndimage.gaussian_filter((before * scan * mask).astype(np.float32), FIELD_MM / spacing_mm) / weight
        field = continued(np.clip(field, 1 / _STRONGEST, _STRONGEST), mask)
    return fit_curve(field * scan, styled, mask), field


def without_noise(
    styled: np.ndarray, projected: np.ndarray, noise: float, mask: np.ndarray, left: float = NOISE
) -> np.ndarray:
    """``styled + w (projected - styled)``: ``w`` is near 1 where their difference varies more than noise does; elsewhere it leaves noise of
    the level ``left``. A scan with less noise than that stays whole.

    Parameters
    ----------
    styled:
        ``(I, J, K)`` the network's image on the scan's grid.
    projected:
        ``(I, J, K)`` the scan under curve and field.
    noise:
        Standard deviation of the noise in ``projected``.
    mask:
        ``(I, J, K)`` bool; what lies outside takes no part in the filter.
    left:
        Standard deviation of the noise to leave.
    """
    detail = projected - styled
    power = _mean(detail**2 * mask) / np.maximum(_mean(mask.astype(np.float32)), 1e-6)
    least = min(1.0, left / max(noise, 1e-6))
    return styled + np.maximum(least, 1 - noise**2 / np.maximum(power, 1e-12)) * detail


def continued(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values outside the mask replaced by those of the nearest voxel inside."""
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _soft(values: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over the mask's part, ``sigma`` in voxels."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return ndimage.gaussian_filter(np.where(mask, values, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-6)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 x 3 voxels, those beyond the volume taken for 0."""
    return ndimage.uniform_filter(values, 3, mode="constant")
