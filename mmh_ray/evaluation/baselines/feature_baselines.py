"""ComBat and CovBat: harmonization of features, not of images. They enter the probes and the clustering, never the voxel measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mmh_ray.errors import DataError

FEATURE_METHODS = {"combat": "fortin", "covbat": "chen"}
"""Our names, and those of combatlearn's methods."""

LEAST_IMAGES = 2
"""Training images that every site must have."""


def traits(rows: Sequence[Mapping[str, Any]], train: np.ndarray) -> np.ndarray | None:
    """``(n, C)`` age in years and sex as 0 and 1: those that every image has and that vary in training; None without any.

    Without them ComBat takes for the scanner's what is the population's.
    """
    ages = [row["age"] if row["age"] is not None else np.nan for row in rows]
    sexes = [{"M": 0.0, "F": 1.0}.get(row["sex"], np.nan) for row in rows]
    found = [
        own for own in (np.array(ages, float), np.array(sexes)) if np.isfinite(own).all() and np.ptp(own[train]) > 0
    ]
    return np.column_stack(found) if found else None


def harmonize_features(
    method: str,
    features: np.ndarray,
    site: Sequence[str] | np.ndarray,
    train: np.ndarray,
    covariates: np.ndarray | None = None,
) -> np.ndarray:
    """Features less their sites' offsets and scales, estimated by empirical Bayes on training images alone.

    ``combat``: Johnson et al. 2007, Fortin et al. 2018; ``covbat`` also removes sites' covariances (Chen et al. 2022). They know the site
    of every image they are applied to, which no method on images does, and no site that was not in training.

    Parameters
    ----------
    method:
        One of :data:`FEATURE_METHODS`.
    features:
        ``(n, F)``, finite; a column that does not vary in training stays as it is.
    site, train:
        ``(n,)`` names; ``(n,)`` bool, True for the images to fit on.
    covariates:
        ``(n, C)`` finite traits whose effect must stay (age, sex as 0 and 1).

    Raises
    ------
    DataError
        If a site has fewer than :data:`LEAST_IMAGES` training images.
    """
    from combatlearn import ComBat  # brings plotting libraries: seconds

    names = np.asarray(site, str)
    for name in np.unique(names):
        if (count := int((names[train] == name).sum())) < LEAST_IMAGES:
            raise DataError(f"{count} training images of site {name}", f"{LEAST_IMAGES} or more", "Leave the site out.")
    adjusted = features.astype(np.float64)
    spread = adjusted[train].std(axis=0)
    varies = spread > 1e-9 * np.maximum(np.abs(adjusted[train]).max(axis=0), 1e-300)
    table = pd.DataFrame(adjusted[:, varies])
    more = None if covariates is None else pd.DataFrame(covariates.astype(float)).add_prefix("c")
    model = ComBat(batch=pd.Series(names), continuous_covariates=more, method=FEATURE_METHODS[method])
    adjusted[:, varies] = model.fit(table[train]).transform(table).to_numpy()
    return adjusted
