"""ComBat and CovBat: harmonization of features, not of images.

They enter the probes and the clustering, never the metrics of voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.records import ImageRecord, ages_of, sexes_of

FEATURE_METHODS = {"combat": "fortin", "covbat": "chen"}
"""Our names, and those of combatlearn's methods."""

LEAST_IMAGES = 2
"""Training images that every site must have."""


def traits(records: Sequence[ImageRecord], is_training: np.ndarray) -> np.ndarray | None:
    """``(n, C)`` age in years and sex as 0 and 1; None without any.

    A trait counts if every image has it and if it varies in training. Without them ComBat takes for the scanner's
    what is the population's.
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
    """Features less their sites' offsets and scales, estimated by empirical Bayes on training images alone.

    ``combat``: Johnson et al. 2007, Fortin et al. 2018; ``covbat`` also removes sites' covariances (Chen et al.
    2022). They know the site of every image they are applied to, which no method on images does. They know no site
    that was not in training.

    Parameters
    ----------
    method:
        One of :data:`FEATURE_METHODS`.
    features:
        ``(n, F)``, finite; a column that does not vary in training stays as it is.
    site, is_training:
        ``(n,)`` names; ``(n,)`` bool, True for the images to fit on.
    covariates:
        ``(n, C)`` finite traits whose effect must stay (age, sex as 0 and 1).

    Raises
    ------
    DataError
        If a site has fewer than :data:`LEAST_IMAGES` training images.
    """
    from combatlearn import ComBat  # brings plotting libraries: seconds

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
