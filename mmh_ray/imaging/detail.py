"""The way back from the network's image to the scan: one curve, one smooth field, and less noise.

What a scanner does to an image is taken for an increasing curve of its intensities and a smooth field. These two are
all that the network, which sees the scan on a coarse grid and may err, is asked for: they are fitted between the scan
and the network's image there and applied to the scan's own voxels: ``projected = curve(field * scan)``. So every edge
and lesion is the scan's, and what the network invents, blurs or erases stays in its own image. Where that differs from
the scan under curve and field by no more than noise does, it takes the noise away (Lee, TPAMI 1980):
``output = styled + w (projected - styled)``. The harmonizer (:mod:`mmh_ray.harmonization.harmonizer`) puts the parts
together on the scan's grid.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.optimize import isotonic_regression

from mmh_ray.imaging.intensity import SMOOTHING, MonotoneMap
from mmh_ray.imaging.smoothing import smooth_inside

NOISE = 0.019
"""Standard deviation, in unit intensity, of the noise that is left in every scan of the unified domain: a part of its
look, too."""

FIELD_MM = 20.0
"""Standard deviation of the smoothing that tells a field from a structure."""

_BINS = 256
"""Voxels are ordered by the scan's intensity and put into so many bins; their medians are the curve's knots."""
_SMOOTH_BINS = 4.0
"""Standard deviation, in bins, of the smoothing of the curve."""
_LEAST_SLOPE = 0.3
"""Of the curve. Where the network orders a tissue's voxels otherwise than the scan does, the best increasing curve is flat, and the
tissue would come out as one level."""
_RISE = 1e-6
"""Least rise of knots and curve from bin to bin, so that both can be read backwards."""
_DARK = 20
"""One in so many bins, the darkest, are lifted by no more than a straight line to 0 lifts them: bone and vessels at the
brain's border, of which the network knows little, and through them what lies around the brain."""
_ROUNDS = 3
"""Times that curve and field are fitted in turn."""
_BELIEVED = 1.1
"""Factor up to which a voxel may ask for another field than its surroundings have: what asks for more is a
structure."""
_STRONGEST = 2.0
"""Factor up to which the field may change the scan."""


def fit_curve(scan: np.ndarray, styled: np.ndarray, mask: np.ndarray) -> MonotoneMap:
    """The increasing curve that leads from the scan to the network's image; 0 stays 0.

    Through the medians of the network's image over the scan's intensities, both slightly smoothed, by isotonic
    regression (Barlow et al., 1972) of what they rise beyond a least slope: a place that the network treats unlike the
    rest has little influence. Above its upper end it goes on with its mean slope, so that what enhances with contrast
    agent keeps its contrast.

    Parameters
    ----------
    scan, styled:
        ``(X, Y, Z)`` unit intensity on the working grid.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    """
    scan_values = smooth_inside(scan.astype(np.float32), mask, SMOOTHING)[mask]
    styled_values = smooth_inside(styled.astype(np.float32), mask, SMOOTHING)[mask]
    by_scan = np.argsort(scan_values, kind="stable")
    bin_count = min(_BINS, scan_values.size)
    bins = np.array_split(by_scan, bin_count)
    knots = _medians(scan_values, bins)
    medians = _medians(styled_values, bins)
    least_heights = _LEAST_SLOPE * knots
    heights = least_heights + isotonic_regression(medians - least_heights).x
    # The change is smoothed, not the heights, so that a curve that changes nothing is kept.
    change = ndimage.gaussian_filter1d(heights - knots, _SMOOTH_BINS, mode="nearest")
    rise = _RISE * np.arange(bin_count)
    heights = np.maximum.accumulate(knots + change) + rise
    knots = np.maximum.accumulate(knots) + rise

    dark = bin_count // _DARK
    knot_of_dark = max(knots[dark], 1e-6)
    straight_line = heights[dark] * knots[:dark] / knot_of_dark
    heights[:dark] = np.minimum(heights[:dark], straight_line)

    first_height = heights[0]
    last_height = heights[-1]
    last_knot = knots[-1]
    slope = (last_height - first_height) / (last_knot - knots[0])
    above = knots > 1e-3
    source = np.array([0.0, *knots[above], last_knot + 10])
    target = np.array([0.0, *heights[above], last_height + 10 * slope])
    return MonotoneMap(source, np.maximum(target, 0))


def _medians(values: np.ndarray, bins: list[np.ndarray]) -> np.ndarray:
    """Median of each bin of indices, float64."""
    return np.array([np.median(values[indices]) for indices in bins], np.float64)


def fit_mapping(
    scan: np.ndarray, styled: np.ndarray, mask: np.ndarray, spacing_mm: float
) -> tuple[MonotoneMap, np.ndarray]:
    """The curve, and the field ``(X, Y, Z)`` float32, for which ``curve(field * scan)`` is most like the network's
    image.

    The field is the local least-squares factor between the scan and what the curve, read backwards, makes of the
    network's image; bright tissue counts most. It is continued outside the mask.

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
    not_negative = np.clip(scan, 0, None)
    scan = np.where(mask, not_negative, 0).astype(np.float32)
    sigma = FIELD_MM / spacing_mm
    power = ndimage.gaussian_filter(scan**2, sigma)
    weight = np.maximum(power, 1e-6)
    for _ in range(_ROUNDS):
        under_field = field * scan
        curve = fit_curve(under_field, styled, mask)
        before_curve = np.interp(styled, curve.target, curve.source)
        least = under_field / _BELIEVED
        most = under_field * _BELIEVED
        believed = np.clip(before_curve, least, most)
        product = (believed * scan * mask).astype(np.float32)
        field = ndimage.gaussian_filter(product, sigma) / weight
        bounded = np.clip(field, 1 / _STRONGEST, _STRONGEST)
        field = continued(bounded, mask)
    return fit_curve(field * scan, styled, mask), field


def without_noise(
    styled: np.ndarray, projected: np.ndarray, noise: float, mask: np.ndarray, left: float = NOISE
) -> np.ndarray:
    """``styled + w (projected - styled)``: ``w`` is near 1 where their difference varies more than noise does;
    elsewhere it leaves noise of the level ``left``. A scan with less noise than that stays whole.

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
    covered = _mean(mask.astype(np.float32))
    covered = np.maximum(covered, 1e-6)
    power = _mean(detail**2 * mask) / covered
    least_kept = min(1.0, left / max(noise, 1e-6))
    share_of_noise = noise**2 / np.maximum(power, 1e-12)
    structure = 1 - share_of_noise  # share of the detail's power that is no noise
    kept = np.maximum(least_kept, structure)
    return styled + kept * detail


def continued(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values outside the mask replaced by those of the nearest voxel inside."""
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 x 3 voxels, those beyond the volume taken for 0."""
    return ndimage.uniform_filter(values, 3, mode="constant")
