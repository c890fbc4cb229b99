"""Predicts the site of images with frozen and retrained probes, on features and on slices.

A *frozen* probe is trained on raw images: it finds only site effects that are in raw images, and a method can learn to
fool it. A *retrained* probe is trained on the method's own output: it finds any site effect that is left or was added.
Judge by the retrained probe. Both are cross-validated by subject, so that no probe is tested on a person it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mmh_ray.errors import DataError
from mmh_ray.evaluation.probes.result import ProbeResult, ProbeTraining

FOLDS = 5
CNN_FOLDS = 3
_SHUFFLES = 1000
_STEPS = 5000
_TINY = 1e-9
_OUTLIER = 10.0  # in standard deviations; features of a method can be far from those a frozen probe was trained on

Labels = Sequence[str] | np.ndarray

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ProbeTraining | None]]
"""Takes training images, their sites and tested images; returns the predicted sites, and how training ended."""


def site_probe(
    features: np.ndarray, site: Labels, subject: Labels, seed: int = 0, trained_on: np.ndarray | None = None
) -> ProbeResult:
    """Linear probe: multinomial logistic regression (Cox 1958), ridge penalty 1, on standardised features.

    Features are standardised in the training folds. The penalty is fixed, so that accuracies of methods do not differ
    because of it; nested cross-validation with so few people would choose it almost at random.

    Cannot see: site effects that are in no feature, or cannot be separated linearly. It cannot distinguish a scanner
    from its population: where sites differ in age, even a perfect method stays above chance.

    Parameters
    ----------
    features:
        ``(n, F)`` of the method's output; NaN is replaced by the training folds' mean.
    trained_on:
        None: *retrained* on the method's own output. The raw images' features ``(n, F)``, row for row: *frozen*,
        trained on raw images of the training folds and applied to the method's output for the held-out subjects.

    Raises
    ------
    DataError
        If there are fewer than two sites, or a site has fewer than two subjects.
    """
    output = np.asarray(features, float)
    return _cross_validate(_predict_linear, output, site, subject, folds=FOLDS, seed=seed, trained_on=trained_on)


def cnn_site_probe(
    slices: np.ndarray, site: Labels, subject: Labels, seed: int = 0, trained_on: np.ndarray | None = None
) -> ProbeResult:
    """Convolutional probe: a small network on ``(n, S, P, P)`` slices of ``features.probe_slices``, in 3 folds.

    It sees each slice and its high-pass, and is trained until it has converged or for 150 epochs (``trainings`` says
    which); an epoch takes about .01 CPU s per image. The result depends only on images and seed. Needs torch. Cannot
    see: anything outside the slices; site effects that need more images or a larger network.

    Raises
    ------
    DataError
        As :func:`site_probe`.
    """
    from mmh_ray.evaluation.probes.convolutional import train_classifier  # imports torch

    def predict(known: np.ndarray, sites: np.ndarray, tested: np.ndarray) -> tuple[np.ndarray, ProbeTraining]:
        names, codes = np.unique(sites, return_inverse=True)
        classify, training = train_classifier(known, codes, seed)
        return names[classify(tested)], training

    return _cross_validate(predict, slices, site, subject, folds=CNN_FOLDS, seed=seed, trained_on=trained_on)


def pattern_site_probe(detail: np.ndarray, site: Labels, subject: Labels, seed: int = 0) -> ProbeResult:
    """Matched filter: predicts the site from a fixed pattern in the fine detail, trained on the method's own output.

    In every training fold, a site's pattern is the mean detail of its images minus the mean over sites (the fingerprint
    of a sensor: Lukáš, Fridrich & Goljan 2006). Voxels are weighted inversely to their spread within sites. A held-out
    image is assigned to the site whose pattern it correlates with best. It finds fixed white patterns far below the
    noise, which features and single slices miss. Cannot see: anything outside the block; patterns that are not at the
    same voxels in every image.

    Parameters
    ----------
    detail:
        ``(n, …)`` from :func:`mmh_ray.evaluation.metrics.features.fine_detail`, for images with the same grid shape.

    Raises
    ------
    DataError
        As :func:`site_probe`.
    """
    flat = detail.reshape(len(detail), -1)
    return _cross_validate(_predict_by_pattern, flat, site, subject, folds=FOLDS, seed=seed)


def _predict_linear(known: np.ndarray, sites: np.ndarray, tested: np.ndarray) -> tuple[np.ndarray, ProbeTraining]:
    model = make_pipeline(
        SimpleImputer(keep_empty_features=True),
        StandardScaler(),
        FunctionTransformer(np.clip, kw_args={"a_min": -_OUTLIER, "a_max": _OUTLIER}),
        LogisticRegression(class_weight="balanced", max_iter=_STEPS),
    )
    model.fit(known, sites)
    steps = int(model[-1].n_iter_.max())
    training = ProbeTraining(
        epochs=steps,
        loss=float(log_loss(sites, model.predict_proba(known), labels=model.classes_)),
        accuracy=float(model.score(known, sites)),
        converged=steps < _STEPS,
    )
    return model.predict(tested), training


def _predict_by_pattern(known: np.ndarray, sites: np.ndarray, tested: np.ndarray) -> tuple[np.ndarray, None]:
    names, codes = np.unique(sites, return_inverse=True)
    means = [known[codes == code].mean(axis=0, dtype=np.float32) for code in range(len(names))]
    site_means = np.stack(means)
    squares_within_sites = (known - site_means[codes]) ** 2
    spread = np.sqrt(squares_within_sites.mean(axis=0))
    varies = spread > _TINY
    # limits the weight to that of the median spread, so that a nearly constant voxel does not dominate
    least_spread = np.median(spread[varies]) if varies.any() else 1
    weight = varies / np.maximum(spread, least_spread)
    overall_mean = site_means.mean(axis=0)
    patterns = (site_means - overall_mean) * weight
    lengths = np.linalg.norm(patterns, axis=1, keepdims=True)
    patterns /= np.maximum(lengths, _TINY)
    weighted = (tested - overall_mean) * weight
    correlations = weighted @ patterns.T
    return names[correlations.argmax(axis=1)], None


def _cross_validate(
    predict: Predict,
    output: np.ndarray,
    site: Labels,
    subject: Labels,
    *,
    folds: int,
    seed: int,
    trained_on: np.ndarray | None = None,
) -> ProbeResult:
    sites = np.asarray(site, str)
    subjects = np.asarray(subject, str)
    source = output if trained_on is None else np.asarray(trained_on, output.dtype)
    predicted = np.empty_like(sites)
    trainings = []
    for known, tested in _splits(sites, subjects, folds, seed):
        predicted[tested], training = predict(source[known], sites[known], output[tested])
        if training is not None:
            trainings.append(training)
    return ProbeResult(
        balanced_accuracy=float(balanced_accuracy_score(sites, predicted)),
        chance=1 / len(np.unique(sites)),
        chance_high=_chance_high(sites, predicted, seed),
        correct=predicted == sites,
        predicted=predicted,
        trainings=tuple(trainings),
    )


def _splits(sites: np.ndarray, subjects: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Folds by subject, stratified by site."""
    subjects_by_site = {}
    for site in np.unique(sites):
        of_site = np.unique(subjects[sites == site])
        subjects_by_site[site] = len(of_site)
    fewest = min(subjects_by_site.values(), default=0)
    if len(subjects_by_site) < 2 or fewest < 2:
        counts = ", ".join(f"{site}: {count}" for site, count in subjects_by_site.items())
        expected = "two or more sites with two or more subjects each"
        raise DataError(f"subjects by site {counts}", expected, "Leave small sites out.")
    count = min(folds, fewest)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return splitter.split(sites, sites, subjects)


def _chance_high(sites: np.ndarray, predicted: np.ndarray, seed: int) -> float:
    """95th percentile of the balanced accuracy when the predictions are randomly permuted."""
    _, codes, counts = np.unique(sites, return_inverse=True, return_counts=True)
    weights = 1 / (len(counts) * counts[codes])
    rng = np.random.default_rng(seed)
    accuracies = []
    for _ in range(_SHUFFLES):
        is_right = rng.permutation(predicted) == sites
        accuracies.append(float(weights[is_right].sum()))
    return float(np.percentile(accuracies, 95))
