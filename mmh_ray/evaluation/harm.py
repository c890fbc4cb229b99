"""What harmonizing cost: invented structure, lost structure, change where none was called for, noise and blur."""

from __future__ import annotations

import numpy as np


def hallucination(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Share of the output's local variance, above noise, that no local affine map of the source explains."""
    raise NotImplementedError


def dissimilarity_map(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``(I, J, K)`` float32 structural dissimilarity, 0 (same structure) to 1, zero outside the mask."""
    raise NotImplementedError


def structural_dissimilarity(output: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Mean of :func:`dissimilarity_map` inside the mask."""
    raise NotImplementedError


def mae(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference inside the mask, in the images' units."""
    raise NotImplementedError


def distance(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """:func:`mae` after each image is scaled by its own percentiles: test-retest pairs; identity on the target's own images."""
    raise NotImplementedError


def idempotence(once: np.ndarray, twice: np.ndarray, mask: np.ndarray) -> float:
    """Mean change by harmonizing again, as a share of the once harmonized image's 1st to 99th percentile."""
    raise NotImplementedError


def noise_estimate(image: np.ndarray, mask: np.ndarray) -> float:
    """Noise as a share of the image's 1st to 99th percentile."""
    raise NotImplementedError


def smoothness_mm(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """Full width at half maximum of the image's autocorrelation in mm (blur)."""
    raise NotImplementedError


def tissue_quantiles(scaled: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """256 quantiles of every tissue's intensities, ready for :func:`mmh_ray.evaluation.metrics.w1` between images or sites."""
    raise NotImplementedError


def lesion_contrast(image: np.ndarray, lesion: np.ndarray, mask: np.ndarray) -> float:
    """Contrast of a lesion to the tissue around it, in standard deviations of that tissue."""
    raise NotImplementedError


def lesion_preservation(output: np.ndarray, source: np.ndarray, lesion: np.ndarray, mask: np.ndarray) -> float:
    """:func:`lesion_contrast` of the output over that of the source; 1 is best."""
    raise NotImplementedError
