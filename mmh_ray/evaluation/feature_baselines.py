"""ComBat and CovBat: harmonization of features, not of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEATURE_METHODS = ("combat", "covbat")


def harmonize_features(
    method: str,
    features: np.ndarray,
    site: Sequence[str],
    train: np.ndarray,
    covariates: np.ndarray | None = None,
) -> np.ndarray:
    """``(n, F)`` features adjusted for site, fitted on the rows where ``train`` ``(n,)`` bool is True only."""
    raise NotImplementedError
