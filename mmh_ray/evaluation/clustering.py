"""Do images gather by site or by person? Every function takes features ``(n, F)`` and labels ``(n,)``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def standardise(features: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1; columns that do not vary become 0."""
    raise NotImplementedError


def silhouettes(features: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """``(n,)`` silhouette of each image; its mean is the figure."""
    raise NotImplementedError


def adjusted_rand(features: np.ndarray, labels: Sequence[str], seed: int = 0) -> float:
    """Adjusted Rand index of k-means with as many clusters as labels."""
    raise NotImplementedError


def lisi(features: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """``(n,)`` local inverse Simpson index, 0 (one label around) to 1 (all labels as often as in the cohort)."""
    raise NotImplementedError


def kbet(features: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """``(n,)`` bool: whether the image's neighbourhood has another composition of labels than the cohort (rejected)."""
    raise NotImplementedError


def same_subject_nearest(features: np.ndarray, subject: Sequence[str], site: Sequence[str]) -> np.ndarray:
    """``(n,)`` 1 where the nearest image of another site is the same subject, NaN where the subject has no other site."""
    raise NotImplementedError


def tsne(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(n, 2)`` t-SNE coordinates."""
    raise NotImplementedError


def umap(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(n, 2)`` UMAP coordinates."""
    raise NotImplementedError
