"""How alike, how true and how well preserved: one function per measure, with formula, citation, range and better way.

Images are 3-D arrays ``(I, J, K)`` on one grid, masks are boolean arrays of the same shape. Similarity between sites
alone rewards blur; :func:`truth_nrmse` cannot be flattered that way, so read them together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion
from skimage.metrics import structural_similarity
from sklearn.isotonic import IsotonicRegression

from mmh_ray.imaging.grid import box_of

JOINT_BINS = 512
PSNR_LIMIT = 100.0
_SSIM_WINDOW = 7


def scale_by_percentiles(image: np.ndarray, mask: np.ndarray, low: float = 1, high: float = 99) -> np.ndarray:
    """Affine map that takes the brain's ``low`` and ``high`` percentiles to 0 and 1, as float32; nothing is clipped.

    Applied before W1, PSNR and SSIM, so that every image is scaled by nothing but itself. An image whose two
    percentiles agree has no scale and becomes 0 everywhere.
    """
    bottom, top = np.percentile(image[mask], (low, high))
    if not top > bottom:
        return np.zeros(image.shape, np.float32)
    return ((image - bottom) / (top - bottom)).astype(np.float32)


def w1(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance between two sets of intensities, ``∫₀¹ |Qa(p) − Qb(p)| dp`` of their quantile functions Q.

    Vallender 1974. Range 0 to ∞ in units of intensity; lower is better. The sets may differ in size.

    >>> w1(np.array([0.0, 1.0]), np.array([0.0]))
    0.5
    """
    a, b = np.sort(np.ravel(a)).astype(np.float64), np.sort(np.ravel(b)).astype(np.float64)
    if a.size == b.size:
        return float(np.abs(a - b).mean())
    edges = np.union1d(np.arange(1, a.size + 1) / a.size, np.arange(1, b.size + 1) / b.size)
    widths = np.diff(edges, prepend=0.0)
    middles = edges - widths / 2
    x, y = (values[np.minimum((middles * values.size).astype(int), values.size - 1)] for values in (a, b))
    return float(np.sum(widths * np.abs(x - y)))


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio in the mask, ``−10 log₁₀ mean((a − b)²)`` dB, for a data range of 1.

    Huynh-Thu & Ghanbari 2008. Range −∞ to ∞; higher is better; equal images give :data:`PSNR_LIMIT`.
    """
    error = float(np.mean((a[mask].astype(np.float64) - b[mask]) ** 2))
    return PSNR_LIMIT if error <= 10 ** (-PSNR_LIMIT / 10) else -10 * float(np.log10(error))


def ssim(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Structural similarity for a data range of 1: the 3-D map (7³ window) averaged inside the mask.

    Wang et al. 2004. Range −1 to 1; higher is better. Both images are set to 0 outside the mask first, so that
    a method that clears the background gains nothing at the border.
    """
    box = box_of(mask)
    inside, margin = mask[box], _SSIM_WINDOW // 2
    first, second = (np.pad(np.where(inside, x[box], 0).astype(np.float32), margin) for x in (a, b))
    _, full = structural_similarity(first, second, win_size=_SSIM_WINDOW, data_range=1.0, full=True)
    return float(full[np.pad(inside, margin)].mean(dtype=np.float64))


def gradient_correlation(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Pearson correlation of the two images' gradient magnitudes: is every edge where the scan has it?

    The gradient is the central difference along each axis, ``(x[i+1] − x[i−1]) / 2`` per voxel; the mask is eroded by
    one voxel so that no difference reaches outside the brain. Range −1 to 1; higher is better; 0 where either is flat.
    """
    inner = binary_erosion(mask)
    if not inner.any():
        return 0.0
    x, y = (np.sqrt(sum(g**2 for g in np.gradient(image.astype(np.float64))))[inner] for image in (output, source))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0


def tissue_contrast(image: np.ndarray, gm: np.ndarray, wm: np.ndarray) -> float:
    """Contrast of grey and white matter, ``|mean WM − mean GM| / s`` with the pooled standard deviation s.

    Cohen 1988 (d). Range 0 to ∞; higher is better, though denoising raises it too. A voxel belongs to the tissue that
    fills more than half of it; 0 where a tissue has fewer than two voxels or nothing varies.
    """
    grey, white = image[gm > 0.5].astype(np.float64), image[wm > 0.5].astype(np.float64)
    if min(grey.size, white.size) < 2:
        return 0.0
    squares = grey.var() * grey.size + white.var() * white.size
    pooled = float(np.sqrt(squares / (grey.size + white.size - 2)))
    return float(abs(white.mean() - grey.mean())) / pooled if pooled > 0 else 0.0


class Joint(NamedTuple):
    """An image's voxels gathered into bins of equally many, by rank of output intensity: all the truth error needs.

    Attributes are ``(bins,)``: the bin's median output intensity, its voxels, the truth's sum and sum of squares.
    """

    output: np.ndarray
    voxels: np.ndarray
    truth: np.ndarray
    truth_squared: np.ndarray


class TruthError(NamedTuple):
    """nRMSE to the truth, of the cohort and of each image."""

    cohort: float
    per_image: np.ndarray


def joint_bins(output: np.ndarray, truth: np.ndarray, mask: np.ndarray, bins: int = JOINT_BINS) -> Joint:
    """Bin the brain voxels of an output and its truth; a monotone change of the output leaves the bins as they are."""
    x, t = output[mask].astype(np.float64), truth[mask].astype(np.float64)
    order = np.argsort(x, kind="stable")
    bins = min(bins, x.size)
    starts = np.arange(bins) * x.size // bins
    ends = np.append(starts[1:], x.size)
    t = t[order]
    sums, squares = np.add.reduceat(t, starts), np.add.reduceat(t**2, starts)
    return Joint(x[order][(starts + ends - 1) // 2], (ends - starts).astype(np.float64), sums, squares)


def truth_bins(scaled: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> Joint:
    """:func:`joint_bins` of an image that is scaled by its percentiles and of the truth, scaled by its own.

    One rule for every method and evaluation: the unit of an MR image is no one's merit.
    """
    return joint_bins(scaled, scale_by_percentiles(truth, mask), mask)


def truth_error(joints: Sequence[Joint]) -> TruthError:
    """nRMSE to the truth from binned images; see :func:`truth_nrmse`."""
    output, count, truth, squared = (np.concatenate(parts) for parts in zip(*joints, strict=True))
    with warnings.catch_warnings():  # the direction is in doubt only where the output hardly follows the truth
        warnings.filterwarnings("ignore", "Confidence interval of the Spearman", UserWarning)
        isotonic = IsotonicRegression(increasing="auto", out_of_bounds="clip")
        fitted = isotonic.fit_transform(output, truth / count, sample_weight=count)
    errors = np.maximum(squared - 2 * fitted * truth + count * fitted**2, 0)
    total = count.sum()
    spread = float(np.sqrt(squared.sum() / total - (truth.sum() / total) ** 2))
    starts = np.cumsum([0] + [joint.voxels.size for joint in joints[:-1]])
    per_image = np.sqrt(np.add.reduceat(errors, starts) / np.add.reduceat(count, starts)) / spread
    return TruthError(float(np.sqrt(errors.sum() / total)) / spread, per_image)


def truth_nrmse(images: Sequence[np.ndarray], truths: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> TruthError:
    """Error to the noise-free rendering of the same anatomy after ONE monotone map for all images of a sequence.

    ``√mean((f(output) − truth)²) / sd(truth)`` over the brain voxels of all images, with f the isotonic regression
    (Barlow et al. 1972) of truth on output intensity over all of them. Range 0 to 1 (1: nothing of the truth is left);
    lower is better. Blur cannot flatter it, nor can any monotone change common to the cohort alter it. Voxels are
    gathered by rank into :data:`JOINT_BINS` bins an image, so that memory does not grow with the cohort's voxels.
    """
    return truth_error([joint_bins(*triple) for triple in zip(images, truths, masks, strict=True)])
