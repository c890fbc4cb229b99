"""Segments tissues without training data, and measures how well two segmentations agree."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.special import softmax
from skimage.filters import threshold_multiotsu

from mmh_ray.errors import DataError
from mmh_ray.imaging.grid import box_of

TISSUES = ("CSF", "GM", "WM")
"""Order of tissues in probabilities; label ``i + 1`` is tissue ``i``, label 0 the background."""

BY_BRIGHTNESS = {"T1w": ("CSF", "GM", "WM"), "T2w": ("WM", "GM", "CSF"), "FLAIR": ("CSF", "WM", "GM")}
"""Tissues of an adult brain from dark to bright, by sequence."""

SMOOTHNESS = 0.6
"""Weight of a neighbour of the same tissue in the log-probability: the β of the Potts field."""

_ITERATIONS = 8
_TAILS = (3.0, 97.0)  # percentiles to clip at; without it, bright fluid in a T2w would get a class of its own
_LEAST_DEVIATION = 0.02
_NEIGHBOURS = ndimage.generate_binary_structure(3, 1).astype(np.float32)  # the 6 neighbours, without the voxel itself
_NEIGHBOURS[1, 1, 1] = 0


def segment_tissues(image: np.ndarray, mask: np.ndarray, sequence: str) -> np.ndarray:
    """Three Gaussians of one variance with a Potts field of the 6 neighbours, by mean-field expectation maximisation.

    Zhang, Brady & Smith 2001 (FAST), without its bias field. It starts from Otsu's thresholds (Otsu 1979, multi-level
    after Liao et al. 2001), so the result is deterministic. It does not depend on gain or offset. Limits: a bias field
    is mistaken for tissue (correct it first); partial volume at the brain's edge is mistaken for fluid in T1w and
    FLAIR.

    Parameters
    ----------
    image, mask:
        ``(I, J, K)`` and ``(I, J, K)`` bool, the brain.
    sequence:
        One of :data:`BY_BRIGHTNESS`, which gives the order of tissues by brightness.

    Returns
    -------
    ``(3, I, J, K)`` float32 probabilities of :data:`TISSUES`, zero outside the mask; 1/3 each in a brain with fewer
    than three intensities.

    Raises
    ------
    DataError
        If the sequence is not in :data:`BY_BRIGHTNESS`.
    """
    if sequence not in BY_BRIGHTNESS:
        known = ", ".join(BY_BRIGHTNESS)
        raise DataError(f"tissues of {sequence}", f"one of {known}", "Leave segmentation out for other sequences.")
    box = box_of(mask)
    dark_to_bright = _classify(image[box], mask[box])
    order = [BY_BRIGHTNESS[sequence].index(tissue) for tissue in TISSUES]
    probabilities = np.zeros((3, *image.shape), np.float32)
    probabilities[(slice(None), *box)] = dark_to_bright[order]
    return probabilities


def tissue_labels(probabilities: np.ndarray) -> np.ndarray:
    """``(I, J, K)`` uint8: 0 outside, else 1 + the index of the likeliest tissue in :data:`TISSUES`."""
    is_inside = probabilities.any(axis=0)
    likeliest = probabilities.argmax(axis=0)
    labels = np.where(is_inside, likeliest + 1, 0)
    return labels.astype(np.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """``2 |a ∩ b| / (|a| + |b|)`` of two boolean arrays.

    Dice 1945. Range 0 to 1; higher is better; NaN if both are empty. Cannot see: how far away the mismatched voxels
    are. A rim of one voxel lowers it more for thin structures.
    """
    total = int(a.sum()) + int(b.sum())
    shared = int((a & b).sum())
    return 2 * shared / total if total else float("nan")


def tissue_dice(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """:func:`dice` of every tissue of two label images of :func:`tissue_labels`."""
    return {tissue: dice(a == label, b == label) for label, tissue in enumerate(TISSUES, start=1)}


def mean_dice(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of :func:`tissue_dice` over the tissues in either image."""
    overlaps = list(tissue_dice(a, b).values())
    return float(np.nanmean(overlaps))


def volume_error(a: np.ndarray, b: np.ndarray) -> float:
    """``|Σa − Σb| / Σb`` of two boolean arrays or probability maps on one grid, ``b`` the reference.

    Range 0 to ∞; lower is better; NaN if the reference is empty. Cannot see: where the volume is; use Dice for that.
    """
    reference = float(b.sum(dtype=np.float64))
    if not reference > 0:
        return float("nan")
    return abs(float(a.sum(dtype=np.float64)) - reference) / reference


def mean_volume_error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean :func:`volume_error` of grey and white matter in two label images, ``b`` the reference."""
    errors = []
    for tissue in ("GM", "WM"):
        label = TISSUES.index(tissue) + 1
        errors.append(volume_error(a == label, b == label))
    return float(np.mean(errors))


def _classify(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``(3, I, J, K)`` probabilities of the classes from dark to bright."""
    values = image[mask].astype(np.float32)
    low, high = np.percentile(values, _TAILS)
    values = np.clip((values - low) / max(high - low, 1e-30), 0, 1)
    volume = np.zeros((3, *mask.shape), np.float32)
    if len(np.unique(np.round(values * 255))) < 3:
        volume[:, mask] = 1 / 3
        return volume
    thresholds = threshold_multiotsu(values[:, None], 3)
    probabilities = np.eye(3, dtype=np.float32)[np.digitize(values, thresholds)].T
    brain_neighbours = np.maximum(_sum_of_neighbours(mask.astype(np.float32))[mask], 1)
    for _ in range(_ITERATIONS):
        volume[:, mask] = probabilities
        neighbours_alike = np.stack([_sum_of_neighbours(one_class)[mask] for one_class in volume])
        potential = SMOOTHNESS * 6 * neighbours_alike / brain_neighbours
        likelihood = _log_likelihood(values, probabilities)
        probabilities = softmax(likelihood + potential, axis=0)
    volume[:, mask] = probabilities
    return volume


def _sum_of_neighbours(volume: np.ndarray) -> np.ndarray:
    return ndimage.convolve(volume, _NEIGHBOURS, mode="constant")


def _log_likelihood(values: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """``(3, n)`` up to a constant, for Gaussians with the classes' means and a common variance."""
    class_sizes = probabilities.sum(axis=1, dtype=np.float64)  # in voxels
    class_sums = probabilities @ values
    means = class_sums / np.maximum(class_sizes, 1)
    deviations = values - means.astype(np.float32)[:, None]
    squares = deviations**2
    weighted_squares = probabilities * squares
    sum_of_squares = float(weighted_squares.sum(dtype=np.float64))
    variance = max(sum_of_squares / values.size, _LEAST_DEVIATION**2)
    return -0.5 * squares / variance
