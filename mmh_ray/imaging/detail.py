"""Detail projection: the style from the model, every edge and lesion from the scan, and less of its noise.

The affine maps source→styled of small windows are those of the guided filter (He et al., TPAMI 2013). What they add to the model's own
image is detail where it rises above the scan's noise, and is weighed by a local Wiener filter (Lee, TPAMI 1980).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from sklearn.isotonic import IsotonicRegression

from mmh_ray.imaging.intensity import SMOOTHING, noise_level

REGULARISATION = 1e-4
"""Added to the local variance of the scan and to its covariance with the styled image (unit intensity squared): in a window that is
flatter than that nothing can be learned, and the scan's own variation goes through as it is."""

NOISE = 0.019
"""Standard deviation, in unit intensity, of the noise that is left in every scan of the unified domain: a part of its look, too."""


DOUBT = 0.04
"""Change of unit intensity beyond curve, field and noise, root mean square over 3 x 3 x 3 voxels, above which the model is not believed."""

FIELD_MM = 24.0
"""Standard deviation of the smoothing that tells a field from a structure."""

CURVE_BINS = 512

FLUID_ML = 0.8
"""Pure fluid that a scan must show for its level to be known."""

FLUID_MM = 9.0
"""Edge of the cubes that must hold nothing but fluid, and their least distance from the mask's border."""

FLAT = 2.0
"""Standard deviation in such a cube, as a multiple of the scan's noise, up to which it holds nothing but fluid."""


def local_affine(
    source: np.ndarray, styled: np.ndarray, mask: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset ``(X, Y, Z)`` of the affine maps source→styled, fitted in cubic windows inside the mask.

    Each voxel's window gives the least-squares ``a, b`` with ``styled ~ a source + b``, with a slope of one where the scan is flat: an
    image that is the scan itself has slope one and offset zero everywhere. The coefficients are then averaged over the windows that
    cover a voxel, the offsets shifted so that the windows' means are again those of ``styled``, and both continued outside the mask by
    their neighbours, so that there is no seam at its border.
    """
    weight = mask.astype(np.float32)
    count = np.maximum(_mean(weight, radius), 1e-6)

    def mean(values: np.ndarray) -> np.ndarray:
        return _mean(values * weight, radius) / count

    source_mean, styled_mean = mean(source), mean(styled)
    covariance = mean(source * styled) - source_mean * styled_mean
    variance = np.maximum(mean(source * source) - source_mean**2, 0)
    slope = (covariance + REGULARISATION) / (variance + REGULARISATION)
    offset = styled_mean - slope * source_mean
    slope, offset = mean(slope), mean(offset)
    offset += mean(styled - slope * source - offset)
    return continued(slope, mask), continued(offset, mask)


def keep_levels(
    styled: np.ndarray, scan: np.ndarray, mask: np.ndarray, spacing_mm: float, fluid: float = np.nan
) -> np.ndarray:
    """The styled image where it is believed: a new style is one intensity curve and a smooth field, and what else the model changes
    over a few voxels by more than :data:`DOUBT` is taken back. So it can put no lesion in and not take one away whole.

    The curve is the monotone one of the scan's (slightly smoothed) intensities that follows the styled image's medians (isotonic
    regression, Barlow et al., 1972), on which a place that the model treats unlike the rest has little influence. Where the difference
    from it, less its smooth part, has more power over 3 x 3 x 3 voxels than the scan's noise under that curve, a Wiener weight takes it
    back: a lesion of a few voxels that the model only blurs has no mean difference, but power. A model that pales or erases a cavity that
    holds much of a brain's fluid has the medians on its side: where the scan shows pure fluid, the curve therefore ends at its level.

    Parameters
    ----------
    styled, scan:
        ``(X, Y, Z)`` unit intensity on the working grid, the scan without bias field.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    spacing_mm:
        Voxel edge.
    fluid:
        What pure fluid is in the look of ``styled``; NaN where nobody knows.
    """
    curved = _fluid_kept(_under_curve(styled, scan, mask), scan, mask, spacing_mm, fluid)
    left = np.where(mask, curved - styled, 0)
    left -= _soft(left, mask, FIELD_MM / spacing_mm) * mask
    power = _inside(left**2, mask) - noise_level(curved, mask) ** 2
    return styled + np.where(mask, np.maximum(0, 1 - DOUBT**2 / np.maximum(power, 1e-12)) * left, 0).astype(np.float32)


def _under_curve(styled: np.ndarray, scan: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The scan under the monotone curve that leads to the styled image, zero outside the mask."""
    plain, wanted = _soft(scan, mask, SMOOTHING)[mask], _soft(styled, mask, SMOOTHING)[mask]
    order = np.array_split(np.argsort(plain), min(CURVE_BINS, plain.size))
    knots, heights = (np.array([np.median(values[part]) for part in order]) for values in (plain, wanted))
    rising = bool(np.cov(knots, heights)[0, 1] >= 0)
    heights = IsotonicRegression(increasing=rising).fit_transform(knots, heights)
    beyond = scan - np.clip(scan, knots[0], knots[-1])  # of the ends, where the curve goes on with its mean slope
    mean_slope = (heights[-1] - heights[0]) / max(knots[-1] - knots[0], 1e-6)
    return np.where(mask, np.interp(scan, knots, heights) + mean_slope * beyond, 0).astype(np.float32)


def _fluid_kept(curved: np.ndarray, scan: np.ndarray, mask: np.ndarray, spacing_mm: float, fluid: float) -> np.ndarray:
    """The scan under a curve, whose end is drawn to the level of fluid where it is paler; grey and white matter stay as they are."""
    if np.isnan(fluid):
        return curved
    inside, middle = scan[mask], float(np.median(curved[mask]))
    rising = curved[mask][inside.argmax()] >= curved[mask][inside.argmin()]
    core = _pure_fluid(scan, mask, spacing_mm, dark=(fluid < middle) == rising)
    missing = fluid - float(np.median(curved.flat[core])) if len(core) else 0.0
    if not missing * (fluid - middle) > 0:
        return curved
    start, end = np.median(inside), np.median(scan.flat[core])
    moved = curved + missing * np.where(mask, np.clip((scan - start) / (end - start), 0, 1) ** 3, 0)
    return np.clip(moved, np.minimum(curved, fluid), np.maximum(curved, fluid)).astype(np.float32)  # none past fluid


def _pure_fluid(scan: np.ndarray, mask: np.ndarray, spacing_mm: float, dark: bool) -> np.ndarray:
    """Flat indices of :data:`FLUID_ML` millilitres of pure fluid: the extreme, :data:`FLUID_MM` or more inside the brain, of the scan's
    means over cubes of that edge, if the cubes vary by no more than noise. None where ventricles are narrower."""
    width, brain = max(1, round(FLUID_MM / 3 / spacing_mm)), np.where(mask, scan, 0).astype(np.float32)
    mean = _mean(brain, width)
    deep = np.flatnonzero(ndimage.distance_transform_edt(mask) * spacing_mm >= FLUID_MM)
    count = int(np.ceil(1000 * FLUID_ML / spacing_mm**3))
    if len(deep) < count:
        return deep[:0]
    core = deep[np.argsort(mean.flat[deep] if dark else -mean.flat[deep])[:count]]
    variance = np.median((_mean(brain**2, width) - mean**2).flat[core])
    return core if variance <= (FLAT * noise_level(scan, mask)) ** 2 else core[:0]


def add_detail(
    styled: np.ndarray, projected: np.ndarray, noise: np.ndarray, mask: np.ndarray, left: float = NOISE
) -> np.ndarray:
    """``styled + w (projected - styled)``: ``w`` is near 1 where their difference varies more than noise does; elsewhere it leaves noise of
    the level ``left``. A scan with less noise than that stays whole.

    Parameters
    ----------
    styled:
        ``(I, J, K)`` the model's image on the scan's grid.
    projected:
        ``(I, J, K)`` the scan under the local affine maps.
    noise:
        ``(I, J, K)`` standard deviation of the noise in ``projected``.
    mask:
        ``(I, J, K)`` bool; what lies outside takes no part in the filter.
    left:
        Standard deviation of the noise to leave.
    """
    detail = projected - styled
    power = _inside(detail**2, mask)
    least = np.minimum(1, left / np.maximum(noise, 1e-6))
    return styled + np.maximum(least, 1 - noise**2 / np.maximum(power, 1e-12)) * detail


def continued(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values outside the mask replaced by those of the nearest voxel inside."""
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _inside(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the mask's part of 3 x 3 x 3 voxels."""
    return _mean(values * mask, 1) / np.maximum(_mean(mask.astype(np.float32), 1), 1e-6)


def _soft(values: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over the mask's part, ``sigma`` in voxels."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return ndimage.gaussian_filter(np.where(mask, values, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-6)


def _mean(values: np.ndarray, radius: int) -> np.ndarray:
    return ndimage.uniform_filter(values, 2 * radius + 1, mode="constant")
