"""An image in numbers: histogram, noise, sharpness, spectrum and texture; and the slices a network may look at.

Everything is computed from the image scaled by its own 1st and 99th percentile, so that a scanner's gain is no feature, and inside the
mask. Noise, spectrum and texture are there so that a mark too faint to see is none too faint to find.
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
"""Voxels a side of the block that :func:`fine_detail` looks at."""


def image_features(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float]:
    """Named features of a brain, the same names in the same order for every image, all finite.

    ``quantile_*``, ``sd``, ``skewness``, ``kurtosis``, ``entropy`` (first-order radiomics; Aerts et al. 2014); ``noise`` (log MAD of the
    finest Haar details; Donoho & Johnstone 1994); ``distinct`` (log of distinct intensities: the file's grey levels); ``gradient_*`` per
    mm; ``band_*`` (log sd of differences of Gaussians); ``fwhm_*`` (mm, see :func:`fwhm_mm`); ``spectrum_*`` and ``profile_*`` (log
    power of fine detail along an axis in 8 bands up to Nyquist, line by line and of the lines' mean); ``glcm_*`` (Haralick et al. 1973);
    ``lbp_*`` (Ojala et al. 2002). Cannot see: where in the brain something is.

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
    found = {
        **_histogram(scaled[inside]),
        "noise": _log(noise_level(scaled, inside)),
        **_gradients(scaled, inside, spacing),
        **_bands(scaled, inside),
        **{f"fwhm_{axis}": width for axis, width in zip("ijk", fwhm_mm(scaled, inside, spacing), strict=True)},
        **_spectrum(scaled, inside),
        **_texture(scaled, inside),
    }
    return {name: float(np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)) for name, value in found.items()}


def probe_slices(image: np.ndarray, mask: np.ndarray, affine: np.ndarray, size: int = 64, count: int = 6) -> np.ndarray:
    """``(count, size, size)`` float16 axial slices at native voxels, evenly spaced over the middle of the brain's height.

    The axes are turned, not resampled, to the closest of right, anterior, superior; the square is centred on the brain and padded with
    zeros; intensities are scaled by the brain's own percentiles, clipped to −1 … 2, and zero outside the mask.
    """
    box = box_of(mask)
    scaled = np.where(mask[box], np.clip(scale_by_percentiles(image[box], mask[box]), -1, 2), 0)
    upright = nib.orientations.apply_orientation(scaled, nib.io_orientation(affine))
    heights = np.linspace(0.3, 0.7, count) * (upright.shape[2] - 1)
    chosen = np.moveaxis(upright[:, :, np.round(heights).astype(int)], 2, 0)
    for axis in (1, 2):
        chosen = _centred(chosen, axis, size)
    return chosen.astype(np.float16)


def fine_detail(image: np.ndarray, mask: np.ndarray, size: int = DETAIL) -> np.ndarray:
    """``(≤ size,) * 3`` float16: the scaled image less the mean of its 3³ neighbourhood, in the middle of the grid.

    What a scanner or a method prints on every image at the same voxels stays in it when images are averaged. The mask's outermost voxels
    and what lies outside are 0; places are those of the voxel grid, whatever the affine.
    """
    starts = [max(0, n - size) // 2 for n in image.shape]
    box = tuple(slice(start, start + size) for start in starts)
    wide = tuple(
        slice(max(0, start - 1), start + size + 1) for start in starts
    )  # the block's border has neighbours, too
    scaled = scale_by_percentiles(image, mask)
    around = ndimage.uniform_filter(scaled[wide], 3)
    trimmed = tuple(
        slice(own.start - more.start, own.start - more.start + size) for own, more in zip(box, wide, strict=True)
    )
    inner = ndimage.binary_erosion(mask, np.ones((3, 3, 3)))[box]
    return np.where(inner, scaled[box] - around[trimmed], 0).astype(np.float16)


def _histogram(values: np.ndarray) -> dict[str, float]:
    values = values.astype(np.float64)
    percentiles = range(5, 100, 10)
    shares = np.histogram(values, 64, (-0.2, 1.2))[0] / values.size
    varies = values.std() > _TINY
    return {
        **{f"quantile_{p}": q for p, q in zip(percentiles, np.percentile(values, percentiles), strict=True)},
        "sd": values.std(),
        "skewness": stats.skew(values) if varies else 0.0,
        "kurtosis": stats.kurtosis(values) if varies else 0.0,
        "entropy": stats.entropy(shares),
        "distinct": np.log(len(np.unique(values.astype(np.float32)))),
    }


def _gradients(scaled: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float]:
    inner = _eroded(mask)
    magnitude = np.sqrt(sum(g**2 for g in np.gradient(scaled, *spacing)))[inner]
    percentiles = (25, 50, 75, 95)
    found = {f"gradient_{p}": _log(q) for p, q in zip(percentiles, np.percentile(magnitude, percentiles), strict=True)}
    return found | {"gradient_curvature": _log(float(ndimage.laplace(scaled)[inner].std()))}


def _bands(scaled: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Log sd inside the mask of what each smoothing takes away from the one before; smoothing knows the mask's border."""
    before, found = scaled, {}
    for sigma in _BANDS:
        after = smooth_inside(scaled, mask, sigma, least_weight=1e-3)
        found[f"band_{sigma:g}"] = _log(float((before - after)[mask].std()))
        before = after
    return found


def _spectrum(scaled: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Log power of fine detail along each axis in bands up to Nyquist, over the middle of the brain.

    ``spectrum_*``: mean power of the single lines (noise and blur); ``profile_*``: power of their mean (stripes, ghosts, waves across
    the brain, which the mean keeps while noise and anatomy cancel).
    """
    middle = tuple(slice(size // 5, max(size - size // 5, size // 5 + 4)) for size in scaled.shape)
    filled = np.where(mask, scaled, scaled[mask].mean())
    detail = (filled - ndimage.gaussian_filter(filled, 1.0))[middle]
    found: dict[str, float] = {}
    for axis, name in enumerate("ijk"):
        lines = np.moveaxis(detail, axis, -1).reshape(-1, detail.shape[axis])
        for kind, own in (("spectrum", lines), ("profile", lines.mean(axis=0, keepdims=True))):
            power = (np.abs(np.fft.rfft(own * np.hanning(own.shape[-1]))) ** 2).mean(axis=0)
            found |= {f"{kind}_{name}{i}": value for i, value in enumerate(_in_bands(power))}
    return found


def _in_bands(power: np.ndarray) -> list[float]:
    """Log of the mean power in bands of equal width, read off between frequencies where there are few."""
    edges = np.linspace(0, len(power) - 1, 4 * _SPECTRUM_BINS)
    fine = np.interp(edges, np.arange(len(power)), power).reshape(_SPECTRUM_BINS, 4)
    return [_log(float(band.mean())) for band in fine]


def _texture(scaled: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Mean over slices of co-occurrence statistics of neighbours and of the histogram of local binary patterns."""
    levels = np.where(mask, 1 + np.clip(scaled * _LEVELS, 0, _LEVELS - 1).astype(np.uint8), 0).astype(np.uint8)
    heights = np.round(np.linspace(0.3, 0.7, _TEXTURE_SLICES) * (mask.shape[2] - 1)).astype(int)
    pairs = sum(graycomatrix(levels[:, :, k], [1], [0, np.pi / 2], levels=_LEVELS + 1) for k in heights)
    pairs = pairs[1:, 1:].sum(axis=3, keepdims=True).astype(np.float64)  # the background takes no part
    pairs /= max(pairs.sum(), 1)
    kinds = ("contrast", "homogeneity", "energy", "correlation")
    found = {f"glcm_{kind}": graycoprops(pairs, kind)[0, 0] for kind in kinds}
    bytes_ = np.clip(scaled * 200 + 20, 0, 255).astype(np.uint8)
    inner = _eroded(mask)
    codes = [local_binary_pattern(bytes_[:, :, k], 8, 1, "uniform")[inner[:, :, k]] for k in heights]
    counts = np.bincount(np.concatenate(codes).astype(int), minlength=10)
    return found | {f"lbp_{i}": share for i, share in enumerate(counts / max(counts.sum(), 1))}


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The mask less its border, or itself where nothing would be left."""
    inner = ndimage.binary_erosion(mask)
    return inner if inner.any() else mask


def _log(value: float) -> float:
    return float(np.log(max(value, _TINY)))


def _centred(slices: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Crop or zero-pad an axis about its middle."""
    first = (slices.shape[axis] - size) // 2
    if first >= 0:
        return np.take(slices, range(first, first + size), axis=axis)
    padding = [(0, 0)] * slices.ndim
    padding[axis] = (-first, size - slices.shape[axis] + first)
    return np.pad(slices, padding)
