"""Tests typical uses of images: predicting age, and relating tissue to age and sex."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from mmh_ray.errors import DataError

FOLDS = 5
_PENALTIES = np.logspace(-2, 4, 13)


@dataclass(frozen=True)
class AgeResult:
    """Brain age; NaN where an image has no age.

    Attributes
    ----------
    mae:
        Mean absolute error in years; lower is better.
    baseline:
        Mean absolute error in years if the mean age of the training images is always predicted.
    predicted, errors:
        ``(n,)`` predicted age and absolute error in years, by a model that was trained without this subject and, with
        sites, without this site.
    """

    mae: float
    baseline: float
    predicted: np.ndarray
    errors: np.ndarray


def brain_age(
    features: np.ndarray,
    age: Sequence[float] | np.ndarray,
    subject: Sequence[str] | np.ndarray,
    site: Sequence[str] | np.ndarray | None = None,
    seed: int = 0,
) -> AgeResult:
    """Predict age by ridge regression (Hoerl & Kennard 1970) on standardised features.

    Cross-validated by subject in 5 folds; with ``site``, training images are from other subjects *and* other sites
    (leave one site out). Scaling, penalty and regression are fitted on training images only. Predictions are clipped to
    the ages in training, because extrapolation to very different images could give any age.

    Cannot see: whether a method learned age from the site, where both are confounded: compare with and without
    ``site``. A low error on few people of similar age means little: compare with ``baseline``.

    Raises
    ------
    DataError
        If there are fewer than two subjects, or two sites, of known age.
    """
    years = np.asarray(age, float)
    with_age = np.flatnonzero(np.isfinite(years))
    subjects = np.asarray(subject)[with_age]
    sites = None if site is None else np.asarray(site)[with_age]
    predicted = np.full(len(years), np.nan)
    mean_age = np.full(len(years), np.nan)
    for training, tested in _splits(subjects, sites, seed):
        training_images = with_age[training]
        tested_images = with_age[tested]
        scaler = StandardScaler().fit(features[training_images])
        training_features = scaler.transform(features[training_images])
        tested_features = scaler.transform(features[tested_images])
        training_years = years[training_images]
        penalty = choose_penalty(training_features, training_years, subjects[training])
        model = Ridge(penalty).fit(training_features, training_years)
        predicted[tested_images] = model.predict(tested_features).clip(training_years.min(), training_years.max())
        mean_age[tested_images] = training_years.mean()
    errors = np.abs(predicted - years)
    errors_of_mean = np.abs(mean_age - years)
    return AgeResult(
        mae=float(errors[with_age].mean()),
        baseline=float(errors_of_mean[with_age].mean()),
        predicted=predicted,
        errors=errors,
    )


def association(
    values: Sequence[float] | np.ndarray, trait: Sequence[float] | np.ndarray, site: Sequence[str] | np.ndarray
) -> float:
    """Spearman's rank correlation of a metric and a trait (age, or sex as 0 and 1), corrected for site.

    Spearman 1904. Range −1 to 1. Harmonization must keep the association in raw scans, or strengthen it by bringing
    sites together; if it fades or changes sign, biology was removed. Ranks are over the whole cohort. Each site's mean
    rank is subtracted, so that a site with older people does not create an association. NaN if nothing varies. Cannot
    see: associations that are not monotone, or differ between sites.
    """
    x = np.asarray(values, float)
    y = np.asarray(trait, float)
    known = np.isfinite(x) & np.isfinite(y)
    sites = np.asarray(site)[known]
    _, site_codes = np.unique(sites, return_inverse=True)
    x_ranks = rankdata(x[known])
    y_ranks = rankdata(y[known])
    x = _centred_in_sites(x_ranks, site_codes)
    y = _centred_in_sites(y_ranks, site_codes)
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else float("nan")


def choose_penalty(features: np.ndarray, target: np.ndarray, subjects: np.ndarray) -> float:
    """Choose the ridge penalty with the least squared error on other people, in 5 folds of whole people.

    With one person, the largest penalty. The singular value decomposition of a fold is reused for all penalties.
    scikit-learn's ``RidgeCV`` is not used, because it averages the errors of folds: images in small folds would count
    more.
    """
    folds = min(FOLDS, len(np.unique(subjects)))
    if folds < 2:
        return float(_PENALTIES[-1])
    errors = np.zeros(len(_PENALTIES))
    for training, tested in GroupKFold(folds).split(subjects, groups=subjects):
        feature_means = features[training].mean(axis=0)
        target_mean = target[training].mean()
        centred = features[training] - feature_means
        u, singular_values, vt = np.linalg.svd(centred, full_matrices=False)
        projected = u.T @ (target[training] - target_mean)
        # from here on a column per penalty
        scaled = (singular_values * projected)[:, None]
        shrunk = scaled / (singular_values[:, None] ** 2 + _PENALTIES)
        tested_centred = features[tested] - feature_means
        predicted = target_mean + tested_centred @ vt.T @ shrunk
        squares = (predicted - target[tested][:, None]) ** 2
        errors += squares.sum(axis=0)
    return float(_PENALTIES[np.argmin(errors)])


def _splits(subjects: np.ndarray, sites: np.ndarray | None, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows to train on and to test; they share no subject and, if sites are given, no site."""
    _check_count(subjects, "subjects")
    if sites is not None:
        _check_count(sites, "sites")
    folds = GroupKFold(min(FOLDS, len(np.unique(subjects))), shuffle=True, random_state=seed)
    for training, tested in folds.split(subjects, groups=subjects):
        if sites is None:
            yield training, tested
            continue
        for site in np.unique(sites[tested]):
            yield training[sites[training] != site], tested[sites[tested] == site]


def _check_count(groups: np.ndarray, plural: str) -> None:
    count = len(np.unique(groups))
    if count < 2:
        raise DataError(f"{count} {plural} with known age", f"two {plural} or more", "Give ages in participants.tsv.")


def _centred_in_sites(ranks: np.ndarray, site_codes: np.ndarray) -> np.ndarray:
    site_means = np.bincount(site_codes, ranks) / np.bincount(site_codes)
    return ranks - site_means[site_codes]
