"""Measures what harmonization costs: invented or lost structure, unnecessary change, noise and blur.

Images are ``(I, J, K)`` on one grid, masks boolean of the same shape. ``output`` is a method's image, ``source`` the
scan it was made from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.segmentation import TISSUES
from mmh_ray.imaging.grid import box_of
from mmh_ray.imaging.intensity import noise_level
from mmh_ray.imaging.resolution import fwhm_mm

RADIUS = 2
"""Windows of the local metrics are cubes of 2 · radius + 1 voxels."""

_QUANTILES = (np.arange(256) + 0.5) / 256
_LEAST_VARIANCE = 1e-4  # mean over windows, in units of the image's squared range; with less, an image is flat
_FLAT_WINDOW = 1e-8  # variance of a window of the source; with less, the source explains nothing
_SSIM_CONSTANT = 0.03**2 / 2
_RING_VOXELS = 3


class _LocalMoments(NamedTuple):
    """Moments of two images in the part of each window that lies inside the mask; each ``(I, J, K)``."""

    first_variance: np.ndarray
    second_variance: np.ndarray
    covariance: np.ndarray


def hallucination(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Share of the output's local variance that no local affine map of the source explains, except noise.

    In every cubic window w inside the mask, the least-squares map ``output ≈ a source + b`` leaves the residual
    variance ``r_w = var(output) (1 − ρ²)``. The score is ``Σ max(0, r_w − n) / Σ var_w(output)``, with n the variance
    of noise in the residual (:func:`mmh_ray.imaging.intensity.noise_level` of output minus smoothed map). So noise kept
    from the scan is explained, removed noise is not structure, and added noise does not count if it is white. The maps
    are those of the guided filter (He et al. 2013). Range 0 to 1; lower is better.

    Cannot see: invented structure that follows the source's edges, or is finer than noise. Where three tissues meet in
    one window, a local change of contrast counts slightly as structure. So compare with honest methods, not with 0.
    """
    box = box_of(mask, RADIUS)
    inside = mask[box]
    scaled_output = scale_by_percentiles(output[box], inside)
    scaled_source = scale_by_percentiles(source[box], inside)
    moments = _local_moments(scaled_output, scaled_source, inside)
    total = float(moments.first_variance[inside].sum(dtype=np.float64))
    if total <= _LEAST_VARIANCE * inside.sum():
        return 0.0
    slope = moments.covariance / np.maximum(moments.second_variance, _FLAT_WINDOW)
    residual = np.maximum(moments.first_variance - slope * moments.covariance, 0)
    explained = ndimage.uniform_filter(slope, 2 * RADIUS + 1) * scaled_source
    noise_variance = noise_level(scaled_output - explained, inside) ** 2
    invented = np.maximum(residual - noise_variance, 0)
    return float(invented[inside].sum(dtype=np.float64)) / total


def dissimilarity_map(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``(I, J, K)`` float32 ``(1 − s) / 2``, s the structure term of SSIM; 0 outside the mask.

    0 is the same structure, ½ unrelated, 1 inverted. ``s = (cov + c) / (σ σ' + c)`` in cubic windows inside the mask
    (Wang et al. 2004, equation 10), ``c = 0.03² / 2`` for images scaled by their percentiles. Changes of brightness and
    contrast, the purpose of harmonization, do not count. Cannot see: the size of a change.
    """
    scaled_output = scale_by_percentiles(output, mask)
    scaled_source = scale_by_percentiles(source, mask)
    moments = _local_moments(scaled_output, scaled_source, mask)
    deviations = np.sqrt(moments.first_variance * moments.second_variance)
    structure = (moments.covariance + _SSIM_CONSTANT) / (deviations + _SSIM_CONSTANT)
    dissimilarity = np.clip((1 - structure) / 2, 0, 1)
    return np.where(mask, dissimilarity, 0).astype(np.float32)


def structural_dissimilarity(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Mean of :func:`dissimilarity_map` in the mask. Range 0 to 1; lower is better; denoising raises it slightly."""
    box = box_of(mask)
    dissimilarity = dissimilarity_map(output[box], source[box], mask[box])
    return float(dissimilarity[mask[box]].mean(dtype=np.float64))


def mae(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """``mean |a − b|`` in the mask, in the images' units. Range 0 to ∞; lower is better; rewards blur, like PSNR."""
    inside_a = a[mask].astype(np.float64)
    differences = np.abs(inside_a - b[mask])
    return float(differences.mean())


def distance(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """:func:`mae` after each image is scaled by its own 1st and 99th percentile.

    Between test and retest on one scanner, harmonization must not raise it. Between the target's own images before and
    after harmonization to the target (identity), 0 is best. Cannot see: a change of gain or offset. Blurring both
    images lowers it.
    """
    scaled_a = scale_by_percentiles(a, mask)
    scaled_b = scale_by_percentiles(b, mask)
    return mae(scaled_a, scaled_b, mask)


def idempotence(once: np.ndarray, twice: np.ndarray, mask: np.ndarray) -> float:
    """``mean |twice − once| / (p99 − p1 of once)``: how much a second pass changes an already harmonized image.

    Range 0 to ∞; lower is better. NaN if ``once`` is flat. Cannot see: whether the first pass helped; doing nothing
    scores 0.
    """
    low, high = np.percentile(once[mask], (1, 99))
    if not high > low:
        return float("nan")
    return mae(once, twice, mask) / float(high - low)


def noise_estimate(image: np.ndarray, mask: np.ndarray) -> float:
    """Noise (MAD of the finest Haar details; Donoho & Johnstone 1994) as a share of the 1st to 99th percentile range.

    Range 0 to 1. It should be similar between sites, not small: a denoised image has 0. Cannot see: noise that is
    correlated between neighbours; with coarse voxels, fine anatomy counts as noise.
    """
    return noise_level(scale_by_percentiles(image, mask), mask)


def smoothness_mm(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """Blur: geometric mean over axes of :func:`mmh_ray.imaging.resolution.fwhm_mm`, in mm.

    Forman et al. 1995; the ``fwhm`` of MRIQC (Esteban et al. 2017). Lower is sharper, but noise lowers it too: read it
    with :func:`noise_estimate`. Anatomy itself is smooth, so compare methods on the same scan. It should be similar
    between sites.
    """
    widths = fwhm_mm(image, mask, spacing)
    volume = np.prod(widths)
    return float(volume ** (1 / 3))


def tissue_quantiles(scaled: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Evenly spaced quantiles ``(256,)`` float32 of each tissue's intensities; a tissue without voxels is left out.

    :func:`mmh_ray.evaluation.metrics.agreement.w1` of two such arrays is the W1 of the tissue, in units of ``scaled``;
    lower between sites is better. Concatenated quantiles of several images are their pooled distribution, with equal
    weight for every image. Cannot see: where in the brain; people whose tissues differ.
    """
    quantiles = {}
    for label, tissue in enumerate(TISSUES, start=1):
        intensities = scaled[labels == label]
        if intensities.size:
            quantiles[tissue] = np.quantile(intensities, _QUANTILES).astype(np.float32)
    return quantiles


def lesion_contrast(image: np.ndarray, lesion: np.ndarray, mask: np.ndarray) -> float:
    """``(mean in the lesion − mean around) / sd around``, where "around" is the brain within 3 voxels of the lesion.

    Signed; NaN if either region is empty. Cannot see: texture inside the lesion. Denoising raises it by lowering the sd
    around.
    """
    inside = lesion & mask
    ring = ndimage.binary_dilation(inside, iterations=_RING_VOXELS) & mask & ~lesion
    if not inside.any() or not ring.any():
        return float("nan")
    around = image[ring].astype(np.float64)
    deviation = around.std()
    if not deviation > 0:
        return float("nan")
    difference = image[inside].mean(dtype=np.float64) - around.mean()
    return float(difference / deviation)


def lesion_preservation(output: np.ndarray, source: np.ndarray, lesion: np.ndarray, mask: np.ndarray) -> float:
    """:func:`lesion_contrast` of the output divided by that of the source.

    1 is best: kept; 0 erased, negative inverted, above 1 stronger. NaN if the source shows no lesion contrast. A small
    deviation from 1 can be right, because harmonization changes contrast.
    """
    before = lesion_contrast(source, lesion, mask)
    if not before:
        return float("nan")
    after = lesion_contrast(output, lesion, mask)
    return after / before


def _local_moments(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> _LocalMoments:
    weight = mask.astype(np.float32)
    share_inside = np.maximum(_window_mean(weight), 1e-6)
    # centred at 0, because small numbers lose fewer digits in the difference of squares
    x = np.where(mask, first - 0.5, 0).astype(np.float64)
    y = np.where(mask, second - 0.5, 0).astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return _window_mean(values) / share_inside

    x_mean = mean(x)
    y_mean = mean(y)
    return _LocalMoments(
        first_variance=np.maximum(mean(x * x) - x_mean * x_mean, 0),
        second_variance=np.maximum(mean(y * y) - y_mean * y_mean, 0),
        covariance=mean(x * y) - x_mean * y_mean,
    )


def _window_mean(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(values, 2 * RADIUS + 1, mode="constant")
