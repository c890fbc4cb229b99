"""Maps the network's image back to the scan: fits one curve and one smooth field, and reduces noise.

The effect of a scanner is modelled as an increasing curve of the intensities and a smooth field. Only these two are
taken from the network, which sees the scan on a coarse grid and may be wrong. They are fitted between the scan and the
network's image, then applied to the scan's own voxels: ``projected = curve(field * scan)``. So every edge and lesion
comes from the scan, and whatever the network invents, blurs or erases has no effect. Where the network's image differs
from ``projected`` by no more than noise, the noise is reduced (Lee, TPAMI 1980): ``output = styled + w (projected -
styled)``. The harmonizer (:mod:`mmh_ray.harmonization.harmonizer`) combines the parts on the scan's grid.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.optimize import isotonic_regression

from mmh_ray.imaging.intensity import SMOOTHING, MonotoneMap
from mmh_ray.imaging.smoothing import smooth_inside

NOISE = 0.019
"""Standard deviation, in unit intensity, of the noise left in every scan of the unified domain: part of its look."""

FIELD_MM = 20.0
"""Standard deviation of the smoothing that separates the field from anatomy."""

_BINS = 256
"""Number of bins into which voxels are sorted by the scan's intensity; the bins' medians are the curve's knots."""
_SMOOTH_BINS = 4.0
"""Standard deviation, in bins, of the smoothing of the curve."""
_LEAST_SLOPE = 0.3
"""Least slope of the curve. If the network orders a tissue's voxels unlike the scan, the best increasing curve is flat,
and the tissue would become one level."""
_RISE = 1e-6
"""Least rise of knots and curve from bin to bin, so that both can be inverted."""
_DARK = 20
"""The darkest bins, one in this many, are brightened no more than a straight line to 0 would brighten them. They hold
bone and vessels at the brain's border, about which the network knows little; the surroundings would follow them."""
_ROUNDS = 3
"""Number of times that curve and field are fitted in turn."""
_BELIEVED = 1.1
"""Largest factor by which one voxel may pull the field away from its current value; more would be anatomy."""
_STRONGEST = 2.0
"""Largest factor by which the field may change the scan."""


def fit_curve(scan: np.ndarray, styled: np.ndarray, mask: np.ndarray) -> MonotoneMap:
    """Fit the increasing curve from the scan's intensities to those of the network's image; 0 stays 0.

    Both images are slightly smoothed. The curve is fitted to the medians of the network's image in bins of the scan's
    intensity, by isotonic regression (Barlow et al., 1972) of their rise beyond a least slope. Medians give little
    influence to a place that the network treats unlike the rest. Above its upper end the curve continues with its mean
    slope, so that tissue enhanced by contrast agent keeps its contrast.

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
    """Fit curve and field ``(X, Y, Z)`` float32 so that ``curve(field * scan)`` approximates the network's image.

    The field is the local least-squares factor between the scan and the network's image under the inverse curve; bright
    tissue has the most weight. Outside the mask the field repeats its nearest value inside.

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
    """Reduce noise: ``styled + w (projected - styled)``.

    ``w`` is near 1 where the difference varies more than noise would. Elsewhere it leaves noise of the level ``left``;
    a scan with less noise than that is not changed.

    Parameters
    ----------
    styled:
        ``(I, J, K)`` the network's image on the scan's grid.
    projected:
        ``(I, J, K)`` the scan after field and curve.
    noise:
        Standard deviation of the noise in ``projected``.
    mask:
        ``(I, J, K)`` bool; voxels outside are ignored by the filter.
    left:
        Standard deviation of the noise to leave.
    """
    detail = projected - styled
    covered = _mean(mask.astype(np.float32))
    covered = np.maximum(covered, 1e-6)
    power = _mean(detail**2 * mask) / covered
    least_kept = min(1.0, left / max(noise, 1e-6))
    share_of_noise = noise**2 / np.maximum(power, 1e-12)
    structure = 1 - share_of_noise  # share of the detail's power that is not noise
    kept = np.maximum(least_kept, structure)
    return styled + kept * detail


def continued(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Replace each value outside the mask by that of the nearest voxel inside."""
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 x 3 voxels; voxels beyond the volume count as 0."""
    return ndimage.uniform_filter(values, 3, mode="constant")
