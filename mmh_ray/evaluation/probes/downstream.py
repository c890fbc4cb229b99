"""What users do with images: predict age, relate tissue to age and sex."""

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
        Mean absolute error in years of always saying the mean age of the training images: what knows nothing reaches.
    predicted, errors:
        ``(n,)`` predicted age and absolute error in years, by a model that saw neither this subject nor, if asked so, this site.
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
    """Age by ridge regression (Hoerl & Kennard 1970) on standardised features, the penalty chosen among other training people.

    Cross-validated by subject in 5 folds; with ``site``, the training images are those of other subjects *and* other sites (leave one site
    out). Scaling, penalty and regression are fitted on training images alone. No answer lies beyond the youngest or the oldest of them: a
    line drawn on to images unlike any of them may end at any age.

    Cannot see: whether a method learnt the cohort's ages by site (age and site confounded): compare both ways. A low error on few people of
    one age says little: compare with ``baseline``.

    Raises
    ------
    DataError
        If there are fewer than two subjects, or two sites, of known age.
    """
    years = np.asarray(age, float)
    known = np.flatnonzero(np.isfinite(years))
    people = np.asarray(subject)[known]
    places = None if site is None else np.asarray(site)[known]
    predicted, guessed = np.full((2, len(years)), np.nan)
    for training, tested in _splits(people, places, seed):
        scale = StandardScaler().fit(features[known[training]])
        own, other = (scale.transform(features[known[rows]]) for rows in (training, tested))
        seen = years[known[training]]
        model = Ridge(choose_penalty(own, seen, people[training]))
        predicted[known[tested]] = model.fit(own, seen).predict(other).clip(seen.min(), seen.max())
        guessed[known[tested]] = seen.mean()
    errors = np.abs(predicted - years)
    return AgeResult(_finite_mean(errors), _finite_mean(np.abs(guessed - years)), predicted, errors)


def association(
    values: Sequence[float] | np.ndarray, trait: Sequence[float] | np.ndarray, site: Sequence[str] | np.ndarray
) -> float:
    """Spearman's rank correlation of a measure with age (or sex as 0 and 1) after each site's mean rank is taken from both.

    Spearman 1904. Range −1 to 1; harmonization must keep raw's, or bring sites' curves together and strengthen it; one that turns or fades
    was erased. Ranks are of the whole cohort; means are taken away within sites, so that sites of older people cannot feign an
    association. NaN where nothing varies. Cannot see: what is not monotone; associations that differ between sites.
    """
    x, y = np.asarray(values, float), np.asarray(trait, float)
    known = np.isfinite(x) & np.isfinite(y)
    _, place = np.unique(np.asarray(site)[known], return_inverse=True)
    x, y = (_centred(rankdata(part[known]), place) for part in (x, y))
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else float("nan")


def choose_penalty(features: np.ndarray, target: np.ndarray, people: np.ndarray) -> float:
    """The ridge penalty of least squared error on images of other people, in 5 folds of whole people; with one person, the largest.

    Every fold's singular value decomposition serves all penalties.
    """
    count = min(FOLDS, len(np.unique(people)))
    if count < 2:
        return float(_PENALTIES[-1])
    errors = np.zeros(len(_PENALTIES))
    for known, held in GroupKFold(count).split(people, groups=people):
        middle, level = features[known].mean(axis=0), target[known].mean()
        left, sizes, right = np.linalg.svd(features[known] - middle, full_matrices=False)
        part = left.T @ (target[known] - level)
        shrunk = (sizes * part)[:, None] / (sizes[:, None] ** 2 + _PENALTIES)
        predicted = level + (features[held] - middle) @ right.T @ shrunk
        errors += ((predicted - target[held][:, None]) ** 2).sum(axis=0)
    return float(_PENALTIES[np.argmin(errors)])


def _splits(people: np.ndarray, places: np.ndarray | None, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and to test; no subject, and where places are given no site, is in both."""
    for groups, kind in ((people, "subjects"), (places, "sites")):
        if groups is not None and (count := len(np.unique(groups))) < 2:
            raise DataError(f"{count} {kind} with known age", f"two {kind} or more", "Give ages in participants.tsv.")
    folds = GroupKFold(min(FOLDS, len(np.unique(people))), shuffle=True, random_state=seed)
    for training, tested in folds.split(people, groups=people):
        if places is None:
            yield training, tested
            continue
        for place in np.unique(places[tested]):
            yield training[places[training] != place], tested[places[tested] == place]


def _centred(ranks: np.ndarray, place: np.ndarray) -> np.ndarray:
    if not ranks.size:
        return ranks
    return ranks - (np.bincount(place, ranks) / np.bincount(place))[place]


def _finite_mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
