"""Measures the similarity of two images, and the error of an image to the truth: one function per metric.

Each function gives formula, citation, range and the better direction. Images are 3-D arrays ``(I, J, K)`` on one grid,
masks are boolean arrays of the same shape. Similarity between sites alone rewards blur. Blur does not improve
:func:`truth_error`, so read them together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion

from mmh_ray.imaging.grid import box_of

JOINT_BINS = 512
PSNR_LIMIT = 100.0
_SSIM_WINDOW = 7


def scale_by_percentiles(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Map the brain's 1st and 99th percentiles linearly to 0 and 1, without clipping; float32.

    Applied before W1, PSNR and SSIM, so that the scaling of an image depends on no other image. If both percentiles
    are equal, the image becomes 0 everywhere.
    """
    bottom, top = np.percentile(image[mask], (1, 99))
    if not top > bottom:
        return np.zeros(image.shape, np.float32)
    scaled = (image - bottom) / (top - bottom)
    return scaled.astype(np.float32)


def w1(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of two sets of intensities: ``∫₀¹ |Qa(p) − Qb(p)| dp``, Q the quantile functions.

    Vallender 1974. Range 0 to ∞ in units of intensity; lower is better. The sets may differ in size.

    >>> w1(np.array([0.0, 1.0]), np.array([0.0]))
    0.5
    """
    from scipy.stats import wasserstein_distance  # takes a third of a second, and not every caller needs it

    return float(wasserstein_distance(np.ravel(a), np.ravel(b)))


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio in the mask, ``−10 log₁₀ mean((a − b)²)`` dB, for a data range of 1.

    Huynh-Thu & Ghanbari 2008. Range −∞ to :data:`PSNR_LIMIT` (equal images); higher is better.
    """
    from skimage.metrics import peak_signal_noise_ratio  # slow to import, and only evaluation needs it

    # in float64, as scikit-image keeps the precision of its input
    first = a[mask].astype(np.float64)
    second = b[mask].astype(np.float64)
    with np.errstate(divide="ignore"):  # equal images: infinite
        decibels = float(peak_signal_noise_ratio(first, second, data_range=1.0))
    return min(decibels, PSNR_LIMIT)


def ssim(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Structural similarity for a data range of 1: the 3-D map (7³ window) averaged inside the mask.

    Wang et al. 2004. Range −1 to 1; higher is better. Both images are first set to 0 outside the mask, so that
    clearing the background is no advantage at the border.
    """
    from skimage.metrics import structural_similarity  # as above

    box = box_of(mask)
    inside = mask[box]
    margin = _SSIM_WINDOW // 2
    brain_a = np.where(inside, a[box], 0).astype(np.float32)
    brain_b = np.where(inside, b[box], 0).astype(np.float32)
    _, similarity = structural_similarity(
        np.pad(brain_a, margin), np.pad(brain_b, margin), win_size=_SSIM_WINDOW, data_range=1.0, full=True
    )
    return float(similarity[np.pad(inside, margin)].mean(dtype=np.float64))


def gradient_correlation(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Pearson correlation of the two images' gradient magnitudes: are the edges in the same places?

    The gradient is the central difference along each axis, ``(x[i+1] − x[i−1]) / 2`` per voxel; the mask is eroded by
    one voxel so that no difference reaches outside the brain. Range −1 to 1; higher is better; 0 if either is flat.
    """
    if not mask.any():
        return 0.0
    box = box_of(mask, margin=1)  # skip the air around the brain; differences need one voxel of margin
    inner = binary_erosion(mask[box])
    if not inner.any():
        return 0.0
    x = _gradient_magnitude(output[box])[inner]
    y = _gradient_magnitude(source[box])[inner]
    x = x - x.mean()
    y = y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0


def tissue_contrast(image: np.ndarray, gm: np.ndarray, wm: np.ndarray) -> float:
    """Contrast of grey and white matter, ``|mean WM − mean GM| / s`` with the pooled standard deviation s.

    Cohen 1988 (d). Range 0 to ∞; higher is better, although denoising raises it too. A voxel belongs to the tissue that
    fills more than half of it. 0 if a tissue has fewer than two voxels or does not vary.
    """
    grey = image[gm > 0.5].astype(np.float64)
    white = image[wm > 0.5].astype(np.float64)
    if min(grey.size, white.size) < 2:
        return 0.0
    squares = grey.var() * grey.size + white.var() * white.size
    degrees_of_freedom = grey.size + white.size - 2
    pooled_sd = float(np.sqrt(squares / degrees_of_freedom))
    if not pooled_sd > 0:
        return 0.0
    difference = float(abs(white.mean() - grey.mean()))
    return difference / pooled_sd


class JointBins(NamedTuple):
    """An image's voxels in bins of equal size, by rank of output intensity: the input of :func:`truth_error`.

    Attributes are ``(bins,)``: the bin's median output intensity and voxel count, the truth's sum and sum of squares.
    """

    output: np.ndarray
    voxels: np.ndarray
    truth: np.ndarray
    truth_squared: np.ndarray


class TruthError(NamedTuple):
    """nRMSE to the truth, for the cohort and for each image."""

    cohort: float
    per_image: np.ndarray


def joint_bins(output: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> JointBins:
    """Bin the brain voxels of an output and its truth; a monotone change of the output does not change the bins."""
    intensities = output[mask].astype(np.float64)
    truths = truth[mask].astype(np.float64)
    order = np.argsort(intensities, kind="stable")
    bins = min(JOINT_BINS, intensities.size)
    starts = np.arange(bins) * intensities.size // bins
    ends = np.append(starts[1:], intensities.size)
    middles = (starts + ends - 1) // 2
    truths = truths[order]
    return JointBins(
        output=intensities[order][middles],
        voxels=(ends - starts).astype(np.float64),
        truth=np.add.reduceat(truths, starts),
        truth_squared=np.add.reduceat(truths**2, starts),
    )


def truth_bins(scaled: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> JointBins:
    """:func:`joint_bins` of a scaled image and of the truth, which is scaled by its own percentiles.

    Every method is treated alike, because the unit of an MR image is arbitrary.
    """
    return joint_bins(scaled, scale_by_percentiles(truth, mask), mask)


def truth_error(joints: Sequence[JointBins]) -> TruthError:
    """nRMSE to the noise-free rendering of the same anatomy, after ONE monotone map for all images of a sequence.

    ``√mean((f(output) − truth)²) / sd(truth)`` over the brain voxels of all images, with f the isotonic regression
    (Barlow et al. 1972) of truth on output intensity over all of them. Range 0 to 1 (1: nothing of the truth is left);
    lower is better. Blur does not lower it, and a monotone change of the whole cohort does not change it. Images are
    binned (:func:`joint_bins`), so that memory does not grow with the number of voxels.
    """
    # one regression for all images: a separate map per image would hide differences between images
    from sklearn.isotonic import IsotonicRegression  # takes a second, and harmonizing does not need it

    output = np.concatenate([joint.output for joint in joints])
    voxels = np.concatenate([joint.voxels for joint in joints])
    truth = np.concatenate([joint.truth for joint in joints])
    truth_squared = np.concatenate([joint.truth_squared for joint in joints])
    with warnings.catch_warnings():  # the direction is uncertain only if output and truth hardly correlate
        warnings.filterwarnings("ignore", "Confidence interval of the Spearman", UserWarning)
        isotonic = IsotonicRegression(increasing="auto", out_of_bounds="clip")
        fitted = isotonic.fit_transform(output, truth / voxels, sample_weight=voxels)
    # Σ (truth − fitted)² of each bin; rounding can make it negative
    squared_errors = np.maximum(truth_squared - 2 * fitted * truth + voxels * fitted**2, 0)
    all_voxels = voxels.sum()
    truth_sd = float(np.sqrt(truth_squared.sum() / all_voxels - (truth.sum() / all_voxels) ** 2))
    bins_of_images = [joint.voxels.size for joint in joints]
    first_bins = np.cumsum([0, *bins_of_images[:-1]])
    errors_of_images = np.add.reduceat(squared_errors, first_bins)
    voxels_of_images = np.add.reduceat(voxels, first_bins)
    return TruthError(
        cohort=float(np.sqrt(squared_errors.sum() / all_voxels)) / truth_sd,
        per_image=np.sqrt(errors_of_images / voxels_of_images) / truth_sd,
    )


def _gradient_magnitude(image: np.ndarray) -> np.ndarray:
    gradients = np.gradient(image.astype(np.float64))
    return np.sqrt(sum(gradient**2 for gradient in gradients))
