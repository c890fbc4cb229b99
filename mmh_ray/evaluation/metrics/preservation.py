"""What harmonizing cost: invented structure, lost structure, change where none was called for, noise and blur.

Images are ``(I, J, K)`` on one grid, masks boolean of the same shape. ``output`` is a method's image, ``source`` the scan it was made from.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.segmentation import TISSUES
from mmh_ray.imaging.grid import box_of
from mmh_ray.imaging.intensity import noise_level
from mmh_ray.imaging.resolution import fwhm_mm

RADIUS = 2
"""Windows of the local measures are cubes of 2 · radius + 1 voxels."""

_QUANTILES = (np.arange(256) + 0.5) / 256
_LEAST = 1e-4  # mean variance, of the image's own range squared: below it an image is flat
_FLAT = 1e-8  # variance of a window of the source: below it there is nothing to explain by
_RING_VOXELS = 3


def hallucination(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Share of the output's local variance that no local affine map of the source explains, noise aside.

    In every cubic window w inside the mask the least-squares map ``output ≈ a source + b`` leaves the residual variance
    ``r_w = var(output) (1 − ρ²)``; the score is ``Σ max(0, r_w − n) / Σ var_w(output)``, with n the variance of noise in the residual:
    what a method keeps of the scan's noise is explained, what it takes away is no structure, and what it adds is noise as far as it is
    white (:func:`mmh_ray.imaging.intensity.noise_level` of output less smooth map). The maps are those of the guided filter (He et al.
    2013). Range 0 to 1; lower is better. Cannot see: invented structure that happens to follow the source's edges, or is finer than
    noise; it takes a local change of contrast between three tissues in one window for structure, a little (so compare with honest
    methods, not with 0).
    """
    box = box_of(mask, RADIUS)
    output, source, mask = output[box], source[box], mask[box]
    inside = mask.astype(np.float32)
    scaled, scan = scale_by_percentiles(output, mask), scale_by_percentiles(source, mask)
    own, other, shared = _local_moments(scaled, scan, inside)
    slope = shared / np.maximum(other, _FLAT)
    residual = np.maximum(own - slope * shared, 0)
    total = float(own[mask].sum(dtype=np.float64))
    if total <= _LEAST * mask.sum():
        return 0.0
    noise = noise_level(scaled - ndimage.uniform_filter(slope, 2 * RADIUS + 1) * scan, mask) ** 2
    return float(np.maximum(residual - noise, 0)[mask].sum(dtype=np.float64)) / total


def dissimilarity_map(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``(I, J, K)`` float32 ``(1 − s) / 2``, s the structure term of SSIM: 0 same structure, ½ unrelated, 1 inverted; 0 outside.

    ``s = (cov + c) / (σ σ' + c)`` in cubic windows inside the mask (Wang et al. 2004, equation 10), ``c = 0.03² / 2`` for images scaled by
    their percentiles: brightness and contrast, which harmonization is to change, do not count. Cannot see: the size of a change.
    """
    scaled, scan = scale_by_percentiles(output, mask), scale_by_percentiles(source, mask)
    own, other, shared = _local_moments(scaled, scan, mask.astype(np.float32))
    constant = 0.03**2 / 2
    structure = (shared + constant) / (np.sqrt(own * other) + constant)
    return np.where(mask, np.clip((1 - structure) / 2, 0, 1), 0).astype(np.float32)


def structural_dissimilarity(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Mean of :func:`dissimilarity_map` inside the mask. Range 0 to 1; lower is better; denoising costs a little."""
    box = box_of(mask)
    return float(dissimilarity_map(output[box], source[box], mask[box])[mask[box]].mean(dtype=np.float64))


def mae(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """``mean |a − b|`` inside the mask, in the images' units. Range 0 to ∞; lower is better; rewards blur, as PSNR does."""
    return float(np.abs(a[mask].astype(np.float64) - b[mask]).mean())


def distance(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """:func:`mae` after each image is scaled by its own 1st and 99th percentile.

    Between test and retest of one scanner: harmonization must not raise it. Between the target's own images before and after being
    harmonized to the target (identity): 0 is best. Cannot see: a change of gain or offset; two images blurred alike come closer.
    """
    return mae(scale_by_percentiles(a, mask), scale_by_percentiles(b, mask), mask)


def idempotence(once: np.ndarray, twice: np.ndarray, mask: np.ndarray) -> float:
    """``mean |twice − once| / (p99 − p1 of once)``: how far a second pass moves what was harmonized already.

    Range 0 to ∞; lower is better: what is in the unified style needs no change. NaN where ``once`` is flat. Cannot see: whether the first
    pass did any good; doing nothing scores 0.
    """
    low, high = np.percentile(once[mask], (1, 99))
    return mae(once, twice, mask) / float(high - low) if high > low else float("nan")


def noise_estimate(image: np.ndarray, mask: np.ndarray) -> float:
    """Noise (MAD of the finest Haar details; Donoho & Johnstone 1994) as a share of the image's 1st to 99th percentile.

    Range 0 to 1. Alike between sites is the aim, not small: 0 is a denoised picture. Cannot see: noise that is correlated between
    neighbours; at coarse voxels fine anatomy counts as noise.
    """
    return noise_level(scale_by_percentiles(image, mask), mask)


def smoothness_mm(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """Geometric mean over axes of :func:`mmh_ray.imaging.resolution.fwhm_mm` in mm: blur.

    Forman et al. 1995; the ``fwhm`` of MRIQC (Esteban et al. 2017). Lower is sharper, but noise lowers it, too: read it with
    :func:`noise_estimate`, and compare methods on the same scan, as anatomy itself is smooth. Alike between sites is the aim.
    """
    return float(np.prod(fwhm_mm(image, mask, spacing)) ** (1 / 3))


def tissue_quantiles(scaled: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """256 evenly spaced quantiles ``(256,)`` float32 of every tissue's intensities; a tissue without voxels is left out.

    :func:`mmh_ray.evaluation.metrics.agreement.w1` of two such arrays is the W1 of the tissue, in units of ``scaled``.
    Quantiles of several images put one after the other are their pool, every image weighing the same. Lower between sites is better.
    Cannot see: where in the brain; people whose tissues differ.
    """
    values = {name: scaled[labels == label] for label, name in enumerate(TISSUES, start=1)}
    return {name: np.quantile(own, _QUANTILES).astype(np.float32) for name, own in values.items() if own.size}


def lesion_contrast(image: np.ndarray, lesion: np.ndarray, mask: np.ndarray) -> float:
    """``(mean in the lesion − mean around) / sd around``, around being the brain within 3 voxels of it. Signed; NaN without either.

    Cannot see: texture inside the lesion. Denoising raises it, as it lowers the spread around.
    """
    inside = lesion & mask
    around = ndimage.binary_dilation(inside, iterations=_RING_VOXELS) & mask & ~lesion
    if not inside.any() or not around.any():
        return float("nan")
    near = image[around].astype(np.float64)
    return float((image[inside].mean(dtype=np.float64) - near.mean()) / near.std()) if near.std() > 0 else float("nan")


def lesion_preservation(output: np.ndarray, source: np.ndarray, lesion: np.ndarray, mask: np.ndarray) -> float:
    """:func:`lesion_contrast` of the output over that of the source: 1 kept, 0 erased, negative inverted, above 1 stronger.

    NaN where the source shows no lesion. Aim for 1: a site's contrast may honestly change a little.
    """
    before = lesion_contrast(source, lesion, mask)
    return lesion_contrast(output, lesion, mask) / before if before else float("nan")


def _local_moments(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variance of x, of y and their covariance in the part of each window that lies inside the mask."""
    count = np.maximum(_mean(weight), 1e-6)
    x, y = (np.where(weight > 0, part - 0.5, 0).astype(np.float64) for part in (x, y))
    a, b = _mean(x) / count, _mean(y) / count
    own, other = (np.maximum(_mean(p * p) / count - m * m, 0) for p, m in ((x, a), (y, b)))
    return own, other, _mean(x * y) / count - a * b


def _mean(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(values, 2 * RADIUS + 1, mode="constant")
