"""Intensities: bias field, invertible robust scaling, quantile functions, histogram matching, noise level."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from mmh_ray.errors import DataError
from mmh_ray.imaging.grid import box_of
from mmh_ray.imaging.smoothing import smooth_inside
from mmh_ray.threads import one_thread

QUANTILES = np.linspace(0.0, 1.0, 257)
"""Probabilities at which every stored quantile function is sampled."""

SMOOTHING = 0.7
"""Standard deviation, in voxels, of the smoothing before tissues are matched; it removes 3/4 of white noise."""

_BLOCK = 2**16
"""Voxels mapped at a time, so that the float64 intermediates stay in the processor's cache."""


@dataclass(frozen=True)
class Scaling:
    """Linear map from a scan's units to unit intensity: ``unit = (scan - low) / (high - low)``."""

    low: float
    high: float

    def apply(self, data: np.ndarray) -> np.ndarray:
        """Scan units to unit intensity."""
        width = self.high - self.low
        unit = (data - self.low) / width
        return unit.astype(np.float32)

    def undo(self, data: np.ndarray) -> np.ndarray:
        """Unit intensity to scan units."""
        width = self.high - self.low
        scan = data * width + self.low
        return scan.astype(np.float32)


def robust_scaling(data: np.ndarray, mask: np.ndarray, upper_percentile: float = 99.5) -> Scaling:
    """Scaling that maps 0 (or the 0.5th percentile, if that is below zero) to 0 and an upper percentile to 1.

    Raises
    ------
    DataError
        If the masked voxels have no contrast.
    """
    inside = data[mask]
    low = 0.0
    high = 0.0
    if inside.size:
        low = min(0.0, float(np.percentile(inside, 0.5)))
        high = float(np.percentile(inside, upper_percentile))
    if not high > low:
        received = f"{inside.size} masked voxels with {upper_percentile}th percentile {high:g}"
        remedy = "Check that the mask and the image belong together."
        raise DataError(received, "positive contrast inside the mask", remedy)
    return Scaling(low, high)


def correct_bias(
    data: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float], iterations: tuple[int, ...] = (30, 20, 10)
) -> np.ndarray:
    """The image ``(I, J, K)`` float32 times the gain of :func:`bias_gain`."""
    gain = bias_gain(data, mask, spacing, iterations)
    return (data * gain).astype(np.float32)


@one_thread()
def bias_gain(
    data: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float], iterations: tuple[int, ...] = (30, 20, 10)
) -> np.ndarray:
    """Gain that removes the receive field: N4 (Tustison et al., IEEE TMI 2010), estimated on a grid of about 8 mm.

    Parameters
    ----------
    data:
        ``(I, J, K)`` intensities; the estimate treats values below zero as zero.
    mask:
        ``(I, J, K)`` bool, where the field is estimated.
    spacing:
        Voxel size in mm.
    iterations:
        Iterations per fitting level; its length is the number of levels.

    Returns
    -------
    ``(I, J, K)`` float32 factor for the image; it keeps the mean inside the mask.
    """
    not_negative = np.maximum(data, 0).astype(np.float32)
    image = sitk.GetImageFromArray(not_negative.T)
    image.SetSpacing(spacing)
    region = sitk.GetImageFromArray(mask.astype(np.uint8).T)
    region.CopyInformation(image)
    factors = [max(1, round(8.0 / size)) for size in spacing]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(list(iterations))
    corrector.Execute(sitk.Shrink(image, factors), sitk.Shrink(region, factors))
    log_field = corrector.GetLogBiasFieldAsImage(image)
    field = sitk.GetArrayFromImage(log_field).T
    # The mask determines the spline only inside: outside, the field is limited to the range of its values inside.
    inside = field[mask]
    field = np.clip(field, inside.min(), inside.max())
    gain = np.exp(-field)
    corrected = data * gain
    mean_before = float(data[mask].mean())
    mean_after = float(corrected[mask].mean())
    same_mean = mean_before / mean_after if mean_after > 0 else 1.0
    return (gain * same_mean).astype(np.float32)


def quantile_function(values: np.ndarray) -> np.ndarray:
    """Quantiles of ``values`` at :data:`QUANTILES`, ``(257,)`` float64."""
    return np.quantile(values, QUANTILES)


def mean_quantile_function(functions: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of quantile functions: the Wasserstein-2 barycentre of the histograms (Agueh & Carlier, 2011)."""
    stacked = np.stack(list(functions))
    return stacked.mean(axis=0)


@dataclass(frozen=True)
class MonotoneMap:
    """Piecewise-linear non-decreasing intensity map through knots, with slope one beyond the end knots."""

    source: np.ndarray
    """``(n,)`` increasing intensities."""
    target: np.ndarray
    """``(n,)`` non-decreasing intensities."""

    @classmethod
    def between(cls, source: np.ndarray, target: np.ndarray) -> MonotoneMap:
        """Map one quantile function onto another (histogram matching); ties in the source take the mean target."""
        knots, knot_of = np.unique(source, return_inverse=True)
        sums = np.bincount(knot_of, weights=target)
        counts = np.bincount(knot_of)
        return cls(knots, sums / counts)

    def apply(self, data: np.ndarray) -> np.ndarray:
        """Mapped intensities, float32, of the shape of ``data``."""
        first_knot = self.source[0]
        last_knot = self.source[-1]
        all_values = np.ravel(data)
        continued = np.empty(all_values.shape, np.float32)
        for start in range(0, all_values.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            values = all_values[block]
            mapped = np.interp(values, self.source, self.target)
            above = np.maximum(values - last_knot, 0)
            below = np.minimum(values - first_knot, 0)
            continued[block] = mapped + (above + below)
        return continued.reshape(data.shape)

    def apply_inside(self, data: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Mapped intensities inside the mask, zero outside."""
        mapped = np.zeros(mask.shape, np.float32)
        mapped[mask] = self.apply(data[mask])
        return mapped


def tissue_quantiles(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Quantile function ``(257,)`` of the masked voxels after slight smoothing, which reduces the effect of noise."""
    smooth = smooth_inside(data.astype(np.float32), mask, SMOOTHING)
    return quantile_function(smooth[mask])


def match_histogram(data: np.ndarray, mask: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Map the volume monotonically so that its brain has the quantile function ``quantiles`` ``(257,)``; zero outside.

    The result does not depend on the volume's intensity scale: an increasing change of it has no effect.
    """
    quantiles_before = quantile_function(data[mask])
    matching = MonotoneMap.between(quantiles_before, quantiles)
    return matching.apply_inside(data, mask)


def match_tissues(data: np.ndarray, mask: np.ndarray, quantiles: np.ndarray, tissues: np.ndarray) -> np.ndarray:
    """Histogram matching that is robust to noise; zero outside the mask.

    Noise widens the peaks of a histogram. So plain matching brings the tissues of a noisy scan closer together than
    those of a clean one. To correct this, the :func:`tissue_quantiles` of the matched volume are matched in turn.

    Parameters
    ----------
    quantiles, tissues:
        ``(257,)`` quantile function to match, and the cohort's mean tissue quantiles of volumes matched to it.
    """
    matched = match_histogram(data, mask, quantiles)
    tissues_before = tissue_quantiles(matched, mask)
    matching = MonotoneMap.between(tissues_before, tissues)
    return matching.apply_inside(matched, mask)


def noise_level(image: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the noise inside the mask, from the median of the finest Haar wavelet details.

    After Donoho & Johnstone, 1994. Zero if the mask contains no cube of 2 x 2 x 2 voxels. skimage's ``estimate_sigma``
    accepts no mask, so its median would include air.
    """
    if not mask.any():
        return 0.0
    box = box_of(mask)
    details = image[box].astype(np.float64)
    whole = mask[box]  # where all voxels that contribute to a detail lie inside
    for axis in range(3):
        details = np.diff(details, axis=axis) / np.sqrt(2)
        has_previous = np.delete(whole, 0, axis=axis)
        has_next = np.delete(whole, -1, axis=axis)
        whole = has_previous & has_next
    if not whole.any():
        return 0.0
    sizes = np.abs(details[whole])
    return float(np.median(sizes)) / 0.6745
