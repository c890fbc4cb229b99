"""Computes features of an image (histogram, noise, sharpness, spectrum, texture), and slices for network probes.

Everything is computed inside the mask, from the image scaled by its own 1st and 99th percentile, so that features do
not depend on the scanner's gain. Noise, spectrum and texture detect marks that are too faint to see.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage, stats
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.imaging.grid import box_of
from mmh_ray.imaging.intensity import noise_level
from mmh_ray.imaging.resolution import fwhm_mm
from mmh_ray.imaging.smoothing import smooth_inside

_LEVELS = 16
_SPECTRUM_BINS = 8
_BANDS = (0.5, 1.0, 2.0, 4.0)
_TEXTURE_SLICES = 5
_TINY = 1e-9

DETAIL = 32
"""Side of the block of :func:`fine_detail`, in voxels."""


def image_features(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float]:
    """Named features of a brain: the same names in the same order for every image, all finite.

    ================  ==============================================================================================
    ``quantile_*``    and ``sd``, ``skewness``, ``kurtosis``, ``entropy``: first-order radiomics (Aerts et al. 2014)
    ``noise``         log MAD of the finest Haar details (Donoho & Johnstone 1994)
    ``distinct``      log of the number of distinct intensities: the file's grey levels
    ``gradient_*``    log of gradients per mm
    ``band_*``        log standard deviation of differences of Gaussians
    ``fwhm_*``        in mm, see :func:`fwhm_mm`
    ``spectrum_*``    log power of fine detail along an axis in 8 bands up to Nyquist: mean over single lines
    ``profile_*``     the same power, but of the mean of all lines
    ``glcm_*``        co-occurrence of grey levels (Haralick et al. 1973)
    ``lbp_*``         local binary patterns (Ojala et al. 2002)
    ================  ==============================================================================================

    Cannot see: where in the brain something is.

    Parameters
    ----------
    image, mask:
        ``(I, J, K)`` and ``(I, J, K)`` bool.
    spacing:
        Voxel size in mm.
    """
    box = box_of(mask)
    inside = mask[box]
    scaled = np.where(inside, scale_by_percentiles(image[box], inside), 0)
    features = _histogram(scaled[inside])
    features["noise"] = _log(noise_level(scaled, inside))
    features |= _gradients(scaled, inside, spacing)
    features |= _bands(scaled, inside)
    for axis, width in zip("ijk", fwhm_mm(scaled, inside, spacing), strict=True):
        features[f"fwhm_{axis}"] = width
    features |= _spectrum(scaled, inside)
    features |= _texture(scaled, inside)
    return {name: float(np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)) for name, value in features.items()}


def probe_slices(image: np.ndarray, mask: np.ndarray, affine: np.ndarray, size: int = 64, count: int = 6) -> np.ndarray:
    """``(count, size, size)`` float16 axial slices at native voxels, evenly spaced over the brain's middle.

    Axes are flipped and permuted, not resampled, to approximate right, anterior, superior. Each square is centred on
    the brain and padded with zeros. Intensities are scaled by the brain's own percentiles, clipped to −1 … 2, and zero
    outside the mask.
    """
    box = box_of(mask)
    scaled = np.clip(scale_by_percentiles(image[box], mask[box]), -1, 2)
    brain = np.where(mask[box], scaled, 0)
    upright = nib.orientations.apply_orientation(brain, nib.io_orientation(affine))
    top = upright.shape[2] - 1
    heights = np.linspace(0.3, 0.7, count) * top
    chosen = upright[:, :, np.round(heights).astype(int)]
    slices = np.moveaxis(chosen, 2, 0)
    slices = _centred(slices, 1, size)
    slices = _centred(slices, 2, size)
    return slices.astype(np.float16)


def fine_detail(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``(≤ DETAIL,) * 3`` float16: the scaled image minus its mean over 3³ voxels, in a block at the grid's centre.

    A pattern that a scanner or a method leaves at the same voxels of every image remains when images are averaged. The
    mask's outermost voxels and all voxels outside it are 0. Positions are voxel indices, whatever the affine.
    """
    block = []
    block_and_neighbours = []
    block_in_neighbours = []
    for extent in image.shape:
        start = max(0, extent - DETAIL) // 2
        start_with_neighbour = max(0, start - 1)
        offset = start - start_with_neighbour
        block.append(slice(start, start + DETAIL))
        # one voxel more on each side, so that voxels at the block's border have all neighbours
        block_and_neighbours.append(slice(start_with_neighbour, start + DETAIL + 1))
        block_in_neighbours.append(slice(offset, offset + DETAIL))
    scaled = scale_by_percentiles(image, mask)
    means_with_border = ndimage.uniform_filter(scaled[tuple(block_and_neighbours)], 3)
    local_mean = means_with_border[tuple(block_in_neighbours)]
    detail = scaled[tuple(block)] - local_mean
    inner = ndimage.binary_erosion(mask, np.ones((3, 3, 3)))[tuple(block)]
    return np.where(inner, detail, 0).astype(np.float16)


def _histogram(values: np.ndarray) -> dict[str, float]:
    values = values.astype(np.float64)
    percents = range(5, 100, 10)
    features = {}
    for percent, quantile in zip(percents, np.percentile(values, percents), strict=True):
        features[f"quantile_{percent}"] = quantile
    is_flat = values.std() <= _TINY
    bin_shares = np.histogram(values, 64, (-0.2, 1.2))[0] / values.size
    features["sd"] = values.std()
    features["skewness"] = 0.0 if is_flat else stats.skew(values)
    features["kurtosis"] = 0.0 if is_flat else stats.kurtosis(values)
    features["entropy"] = stats.entropy(bin_shares)
    features["distinct"] = np.log(len(np.unique(values.astype(np.float32))))
    return features


def _gradients(scaled: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float]:
    inner = _eroded(mask)
    squares = sum(gradient**2 for gradient in np.gradient(scaled, *spacing))
    magnitude = np.sqrt(squares)[inner]
    percents = (25, 50, 75, 95)
    features = {}
    for percent, quantile in zip(percents, np.percentile(magnitude, percents), strict=True):
        features[f"gradient_{percent}"] = _log(quantile)
    curvature = ndimage.laplace(scaled)[inner]
    features["gradient_curvature"] = _log(float(curvature.std()))
    return features


def _bands(scaled: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Log sd of the difference between each smoothing and the one before, computed only from voxels in the mask."""
    features = {}
    before = scaled
    for sigma in _BANDS:
        after = smooth_inside(scaled, mask, sigma, least_weight=1e-3)
        features[f"band_{sigma:g}"] = _log(float((before - after)[mask].std()))
        before = after
    return features


def _spectrum(scaled: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Log power of fine detail along each axis in bands up to Nyquist, over the middle of the brain.

    ``spectrum_*``: mean power of single lines (noise and blur). ``profile_*``: power of the mean line (stripes, ghosts
    and waves across the brain, which averaging keeps, while noise and anatomy cancel).
    """
    middle = []
    for extent in scaled.shape:
        start = extent // 5
        middle.append(slice(start, max(extent - start, start + 4)))
    filled = np.where(mask, scaled, scaled[mask].mean())  # avoids an edge at the mask, which would count as detail
    detail = (filled - ndimage.gaussian_filter(filled, 1.0))[tuple(middle)]
    features: dict[str, float] = {}
    for axis, name in enumerate("ijk"):
        lines = np.moveaxis(detail, axis, -1).reshape(-1, detail.shape[axis])
        mean_line = lines.mean(axis=0, keepdims=True)
        for i, value in enumerate(_band_powers(lines)):
            features[f"spectrum_{name}{i}"] = value
        for i, value in enumerate(_band_powers(mean_line)):
            features[f"profile_{name}{i}"] = value
    return features


def _band_powers(lines: np.ndarray) -> list[float]:
    """Log of the lines' mean power in bands of equal width, interpolated if there are few frequencies."""
    windowed = lines * np.hanning(lines.shape[-1])
    amplitudes = np.abs(np.fft.rfft(windowed))
    power = (amplitudes**2).mean(axis=0)
    frequencies = np.arange(len(power))
    points = np.linspace(0, frequencies[-1], 4 * _SPECTRUM_BINS)
    power_at_points = np.interp(points, frequencies, power)
    bands = power_at_points.reshape(_SPECTRUM_BINS, 4)
    return [_log(float(band.mean())) for band in bands]


def _texture(scaled: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Co-occurrence statistics of neighbouring voxels, and local binary patterns, over a few slices."""
    top = mask.shape[2] - 1
    places = np.linspace(0.3, 0.7, _TEXTURE_SLICES) * top
    heights = np.round(places).astype(int)
    features = _cooccurrence(scaled, mask, heights)
    features |= _binary_patterns(scaled, _eroded(mask), heights)
    return features


def _cooccurrence(scaled: np.ndarray, mask: np.ndarray, heights: np.ndarray) -> dict[str, float]:
    scaled_levels = np.clip(scaled * _LEVELS, 0, _LEVELS - 1)
    brain_levels = 1 + scaled_levels.astype(np.uint8)
    levels = np.where(mask, brain_levels, 0).astype(np.uint8)  # 0 is the background
    angles = [0, np.pi / 2]
    matrices = [graycomatrix(levels[:, :, height], [1], angles, levels=_LEVELS + 1) for height in heights]
    counts = np.sum(matrices, axis=0)
    counts_in_brain = counts[1:, 1:]
    in_either_direction = counts_in_brain.sum(axis=3, keepdims=True)
    pairs = in_either_direction.astype(np.float64)
    pairs /= max(pairs.sum(), 1)
    properties = ("contrast", "homogeneity", "energy", "correlation")
    return {f"glcm_{name}": graycoprops(pairs, name)[0, 0] for name in properties}


def _binary_patterns(scaled: np.ndarray, inner: np.ndarray, heights: np.ndarray) -> dict[str, float]:
    grey_levels = np.clip(scaled * 200 + 20, 0, 255).astype(np.uint8)
    codes_of_slices = []
    for height in heights:
        patterns = local_binary_pattern(grey_levels[:, :, height], 8, 1, "uniform")
        inside = inner[:, :, height]
        codes_of_slices.append(patterns[inside])
    codes = np.concatenate(codes_of_slices).astype(int)
    counts = np.bincount(codes, minlength=10)
    shares = counts / max(counts.sum(), 1)
    return {f"lbp_{code}": share for code, share in enumerate(shares)}


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without its border, or the mask itself if nothing would be left."""
    inner = ndimage.binary_erosion(mask)
    return inner if inner.any() else mask


def _log(value: float) -> float:
    return float(np.log(max(value, _TINY)))


def _centred(slices: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Crop or zero-pad an axis around its centre."""
    first = (slices.shape[axis] - size) // 2
    if first >= 0:
        return np.take(slices, range(first, first + size), axis=axis)
    padding = [(0, 0)] * slices.ndim
    padding[axis] = (-first, size - slices.shape[axis] + first)
    return np.pad(slices, padding)
