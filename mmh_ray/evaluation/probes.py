"""Can the site still be told? Frozen and retrained probes on features and on slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes
    ----------
    balanced_accuracy:
        Mean over sites of the share of their images that are told right; lower is better for harmonization.
    chance:
        ``1 / sites``.
    correct:
        ``(n,)`` bool, image by image, each judged by a probe that never saw its subject.
    predicted:
        ``(n,)`` site names.
    """

    balanced_accuracy: float
    chance: float
    correct: np.ndarray
    predicted: np.ndarray


def site_probe(
    features: np.ndarray,
    site: Sequence[str],
    subject: Sequence[str],
    seed: int = 0,
    trained_on: np.ndarray | None = None,
) -> ProbeResult:
    """Linear probe on ``(n, F)`` features, cross-validated by subject.

    ``trained_on`` None: *retrained* on the method's own output. ``trained_on`` the raw images' features ``(n, F)``, row for row:
    *frozen*, trained on raw images of the training folds, applied to the method's output of the held-out subjects.
    """
    raise NotImplementedError


def cnn_site_probe(
    slices: np.ndarray,
    site: Sequence[str],
    subject: Sequence[str],
    seed: int = 0,
    trained_on: np.ndarray | None = None,
) -> ProbeResult:
    """The same with a small convolutional network on ``(n, S, P, P)`` slices of :func:`probe_slices`. Needs torch."""
    raise NotImplementedError


def image_features(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float]:
    """Named radiomic, histogram, noise and texture features; the same names for every image."""
    raise NotImplementedError


def probe_slices(image: np.ndarray, mask: np.ndarray, affine: np.ndarray, size: int = 64, count: int = 6) -> np.ndarray:
    """``(count, size, size)`` float16 axial slices of the brain, scaled by the image's own percentiles, native voxels."""
    raise NotImplementedError
