"""ComBat and CovBat: harmonize features, not images.

They appear in the probes and the clustering, never in voxel metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.records import ImageRecord, ages_of, sexes_of

FEATURE_METHODS = {"combat": "fortin", "covbat": "chen"}
"""Our name of each method, and its name in combatlearn."""

LEAST_IMAGES = 2
"""Training images that every site must have."""


def traits(records: Sequence[ImageRecord], is_training: np.ndarray) -> np.ndarray | None:
    """``(n, C)`` age in years and sex as 0 and 1; None if no trait can be used.

    A trait is used if every image has it and it varies in training. Without traits, ComBat treats differences between
    populations as differences between scanners.
    """
    columns = []
    for trait in (ages_of(records), sexes_of(records)):
        is_known = np.isfinite(trait).all()
        if is_known and np.ptp(trait[is_training]) > 0:
            columns.append(trait)
    return np.column_stack(columns) if columns else None


def harmonize_features(
    method: str,
    features: np.ndarray,
    site: Sequence[str] | np.ndarray,
    is_training: np.ndarray,
    covariates: np.ndarray | None = None,
) -> np.ndarray:
    """Remove each site's offset and scale from the features, estimated by empirical Bayes on training images only.

    ``combat``: Johnson et al. 2007, Fortin et al. 2018; ``covbat`` also removes the sites' covariances (Chen et al.
    2022). Both need the site of every image they are applied to, which no image method does. A site must be in
    training.

    Parameters
    ----------
    method:
        One of :data:`FEATURE_METHODS`.
    features:
        ``(n, F)``, finite; a column that does not vary in training is left unchanged.
    site, is_training:
        ``(n,)`` names; ``(n,)`` bool, True for the images to fit on.
    covariates:
        ``(n, C)`` finite traits whose effect is preserved (age, sex as 0 and 1).

    Raises
    ------
    DataError
        If a site has fewer than :data:`LEAST_IMAGES` training images.
    """
    from combatlearn import ComBat  # slow to import: it loads plotting libraries

    sites = np.asarray(site, str)
    for name in np.unique(sites):
        count = int((sites[is_training] == name).sum())
        if count < LEAST_IMAGES:
            raise DataError(f"{count} training images of site {name}", f"{LEAST_IMAGES} or more", "Leave the site out.")
    adjusted = features.astype(np.float64)
    training = adjusted[is_training]
    largest = np.maximum(np.abs(training).max(axis=0), 1e-300)
    varies = training.std(axis=0) > 1e-9 * largest
    table = pd.DataFrame(adjusted[:, varies])
    kept_traits = None
    if covariates is not None:
        kept_traits = pd.DataFrame(covariates.astype(float)).add_prefix("c")
    model = ComBat(batch=pd.Series(sites), continuous_covariates=kept_traits, method=FEATURE_METHODS[method])
    model.fit(table[is_training])
    adjusted[:, varies] = model.transform(table).to_numpy()
    return adjusted
