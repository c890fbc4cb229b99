"""Classical image methods: raw, z-score, WhiteStripe, Nyúl, N4 and histogram matching.

Histogram matching also comes with N4 before it, and with denoising after it. :data:`BASELINES` lists all methods.

Each is fitted on training images of all sites and applied to one image. Fitting needs only the
:func:`quantile_function` of each image, which a cluster can gather cheaply. If ``bias_corrected`` is True, a method is
fitted on and applied to images after N4 (:func:`mmh_ray.imaging.intensity.correct_bias`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks
from skimage.restoration import denoise_nl_means

from mmh_ray.imaging.grid import box_of
from mmh_ray.imaging.intensity import MonotoneMap, noise_level

LEVELS = 1001
"""Points of a quantile function: one per 0.1 %, from the brain's minimum to its maximum."""

_STRIPE = 0.05
_MARGIN = 16  # empty bins around the histogram, so that a maximum in its first or last bin counts as a peak
_NYUL_PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)


def quantile_function(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``(LEVELS,)`` brain intensities at evenly spaced probabilities from 0 to 1."""
    intensities = image[mask].astype(np.float64)
    probabilities = np.linspace(0, 1, LEVELS)
    return np.quantile(intensities, probabilities)


class Baseline(ABC):
    """A method that is fitted on a cohort and applied to one image at a time."""

    bias_corrected: ClassVar[bool] = False
    """Whether it works on images after N4."""

    @classmethod
    @abstractmethod
    def from_quantiles(cls, quantiles: Iterable[np.ndarray]) -> Self:
        """Fit from the training images' quantile functions."""

    @abstractmethod
    def apply(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The standardised image, float32, on the same grid."""


class Unfitted(Baseline):
    """A method that learns nothing from a cohort."""

    @classmethod
    def from_quantiles(cls, quantiles: Iterable[np.ndarray]) -> Self:
        """Nothing to learn."""
        return cls()


class Raw(Unfitted):
    """The unchanged scan."""

    def apply(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The image itself."""
        return image.astype(np.float32)


class Corrected(Raw):
    """The scan after N4 (Tustison et al. 2010) and nothing else: the least that a method must reach."""

    bias_corrected: ClassVar[bool] = True


class ZScore(Unfitted):
    """``(x − mean) / sd`` with the brain's own mean and standard deviation (Reinhold et al. 2019)."""

    def apply(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Mean 0 and standard deviation 1 inside the mask; a flat brain becomes 0."""
        brain = image[mask].astype(np.float64)
        deviation = brain.std() or 1.0
        return ((image - brain.mean()) / deviation).astype(np.float32)


@dataclass(frozen=True)
class WhiteStripe(Baseline):
    """``(x − μ) / σ`` with the mean and standard deviation of normal-appearing white matter (Shinohara et al. 2014).

    White matter is the histogram peak farthest from the fluid: the brightest peak where fluid is dark (T1w), the
    darkest where it is bright (T2w). For T2w the paper takes the largest peak, which in coarse scans is grey matter.
    The stripe holds 5 % of the brain's voxels on each side of the peak. Only the side of the fluid is learned from
    other images.
    """

    fluid_is_bright: bool
    """Whether the long tail of the cohort's histograms, the fluid, is at the bright end."""

    bias_corrected: ClassVar[bool] = True

    @classmethod
    def from_quantiles(cls, quantiles: Iterable[np.ndarray]) -> Self:
        """Compare the lengths of the histograms' tails, from the median to the 1st and to the 99th percentile."""
        skews = []
        for quantile in quantiles:
            low = quantile[round(0.01 * (LEVELS - 1))]
            middle = quantile[round(0.5 * (LEVELS - 1))]
            high = quantile[round(0.99 * (LEVELS - 1))]
            if high > low:
                skews.append((high + low - 2 * middle) / (high - low))
        return cls(fluid_is_bright=bool(np.mean(skews) > 0))

    def apply(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """White matter has mean 0 and standard deviation 1; a flat brain becomes 0."""
        values = image[mask].astype(np.float64)
        values.sort()
        below_peak = np.searchsorted(values, self._peak(values))
        peak_rank = below_peak / values.size  # 0 to 1
        lowest_rank = max(peak_rank - _STRIPE, 0)
        highest_rank = min(peak_rank + _STRIPE, 1)
        first = int(lowest_rank * (values.size - 1))
        last = int(highest_rank * (values.size - 1))
        stripe = values[first : last + 1]
        deviation = stripe.std() or 1.0
        return ((image - stripe.mean()) / deviation).astype(np.float32)

    def _peak(self, values: np.ndarray) -> float:
        """Intensity of the white matter's peak in the smoothed histogram of the brain."""
        low, high = np.percentile(values, (0.5, 99.5))
        if not high > low:
            return float(low)
        counts, edges = np.histogram(values, 256, (low, high))
        padded = np.pad(counts.astype(float), _MARGIN)
        smoothed = gaussian_filter1d(padded, 4)
        peaks, _ = find_peaks(smoothed, prominence=0.02 * smoothed.max())
        # peaks are sorted by intensity
        farthest_from_fluid = peaks[0] if self.fluid_is_bright else peaks[-1]
        white_bin = int(np.clip(farthest_from_fluid - _MARGIN, 0, 255))
        ends_of_bin = edges[white_bin : white_bin + 2]
        return float(ends_of_bin.sum() / 2)


@dataclass(frozen=True)
class Nyul(Baseline):
    """Landmark standardisation (Nyúl & Udupa 1999; Nyúl, Udupa & Zhang 2000): percentiles 1, 10, 20 … 90, 99."""

    landmarks: np.ndarray
    """``(11,)`` standard intensities of the percentiles, from 0 to 100."""

    @classmethod
    def from_quantiles(cls, quantiles: Iterable[np.ndarray]) -> Self:
        """Mean of the images' landmarks, each image's first and last mapped to 0 and 100."""
        scaled = []
        for quantile in quantiles:
            landmarks = _landmarks(quantile)
            first = landmarks[0]
            last = landmarks[-1]
            if last > first:
                scaled.append(100 * (landmarks - first) / (last - first))
        return cls(np.mean(scaled, axis=0))

    def apply(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Piecewise linear from the image's landmarks to the standard ones, extrapolated beyond the outer ones."""
        landmarks_of_image = _landmarks(quantile_function(image, mask))
        knots = MonotoneMap.between(landmarks_of_image, self.landmarks)
        source = knots.source
        mapped = np.interp(image, source, knots.target)
        if source.size > 1:
            slopes = np.diff(knots.target) / np.diff(source)
            below = np.minimum(image - source[0], 0)
            above = np.maximum(image - source[-1], 0)
            mapped += below * slopes[0] + above * slopes[-1]
        return mapped.astype(np.float32)


@dataclass(frozen=True)
class HistogramMatching(Baseline):
    """Full quantile mapping of the brain to the cohort's mean quantile function."""

    quantiles: np.ndarray
    """``(LEVELS,)`` mean quantile function of the cohort, each image scaled to a 99th percentile of 1."""

    @classmethod
    def from_quantiles(cls, quantiles: Iterable[np.ndarray]) -> Self:
        """Mean over images, each divided by its 99th percentile, so that zero stays zero."""
        scaled = []
        for quantile in quantiles:
            percentile_99 = quantile[round(0.99 * (LEVELS - 1))]
            if percentile_99 > 0:
                scaled.append(quantile / percentile_99)
        return cls(np.mean(scaled, axis=0))

    def apply(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Map intensities by rank to those of the cohort inside the mask; 0 outside."""
        to_cohort = MonotoneMap.between(quantile_function(image, mask), self.quantiles)
        mapped = to_cohort.apply(image)
        return np.where(mask, mapped, 0).astype(np.float32)


class CorrectedHistogramMatching(HistogramMatching):
    """Histogram matching, fitted on and applied to images after N4."""

    bias_corrected: ClassVar[bool] = True


class DenoisedHistogramMatching(CorrectedHistogramMatching):
    """N4, histogram matching, then 3-D non-local means (Buades et al. 2005): smooth, but less true to the anatomy."""

    def apply(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Denoise with 3³ patches, a search radius of 2 voxels, and the noise level of the matched image."""
        matched = super().apply(image, mask)
        box = box_of(mask)
        brain = matched[box]
        sigma = noise_level(brain, mask[box])
        output = np.zeros_like(matched)
        output[box] = denoise_nl_means(
            brain,
            patch_size=3,
            patch_distance=2,
            h=max(0.8 * sigma, 1e-6),
            fast_mode=True,
            sigma=sigma,
            preserve_range=True,
        )
        return np.where(mask, output, 0).astype(np.float32)


BASELINES: dict[str, type[Baseline]] = {
    "raw": Raw,
    "zscore": ZScore,
    "whitestripe": WhiteStripe,
    "nyul": Nyul,
    "histogram_matching": HistogramMatching,
    "n4": Corrected,
    "n4_histogram_matching": CorrectedHistogramMatching,
    "n4_histogram_matching_nlm": DenoisedHistogramMatching,
}


def _landmarks(quantile: np.ndarray) -> np.ndarray:
    return quantile[[percentile * (LEVELS - 1) // 100 for percentile in _NYUL_PERCENTILES]]
