"""Can the site still be told? Frozen and retrained probes, on features and on slices.

A *frozen* probe was trained on raw images: it finds only the marks that raw images carry, and a method can learn to fool it. A
*retrained* probe is trained on the method's own output: it finds whatever mark is left or was added. Judge by the retrained one. Both
are cross-validated by subject, so that no probe knows a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, recall_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mmh_ray.errors import DataError
from mmh_ray.evaluation.metrics.features import image_features, probe_slices

__all__ = ["ProbeResult", "cnn_site_probe", "image_features", "probe_slices", "site_probe"]

FOLDS = 5
CNN_FOLDS = 3
_SHUFFLES = 1000
_STEPS = 5000
_TINY = 1e-9
_OUTLIER = 10.0  # standard deviations: a frozen probe meets features far from those it knows

Labels = Sequence[str] | np.ndarray


class Training(NamedTuple):
    """How a probe's training ended: steps or epochs, mean loss and share of training images that it tells right, whether it was done."""

    epochs: int
    loss: float
    accuracy: float
    converged: bool


Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, Training | None]]


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes
    ----------
    balanced_accuracy:
        Mean over sites of the share of their images that are told right, 0 to 1; after harmonization, lower is better down to ``chance``.
    chance:
        ``1 / sites``: what guessing reaches on average.
    chance_high:
        What 95 of 100 guessers stay below: the 95th percentile when the predictions are dealt to the images anew. Above it sites
        can be told. It takes images for independent, so with several images a person it is a little low.
    correct:
        ``(n,)`` bool, image by image, each judged by a probe that never saw its subject; for
        :func:`mmh_ray.evaluation.statistics.bootstrap.bootstrap` with the sites as strata.
    predicted:
        ``(n,)`` site names.
    trainings:
        How training ended, fold by fold; empty for a probe that has nothing to train.
    """

    balanced_accuracy: float
    chance: float
    chance_high: float
    correct: np.ndarray
    predicted: np.ndarray
    trainings: tuple[Training, ...] = ()


def site_probe(
    features: np.ndarray, site: Labels, subject: Labels, seed: int = 0, trained_on: np.ndarray | None = None
) -> ProbeResult:
    """Linear probe: multinomial logistic regression (Cox 1958), ridge penalty 1, on features standardised in the training folds.

    The penalty is the same for every method, or their accuracies would differ by it, too; and folds within folds of so few people would
    choose it by chance. Cannot see: marks that no feature carries, and combinations of features that no plane separates; and it cannot
    tell a scanner from its population: where sites differ in age, an honest method stays above chance.

    Parameters
    ----------
    features:
        ``(n, F)`` of the method's output; NaN takes the training folds' mean.
    trained_on:
        None: *retrained* on the method's own output. The raw images' features ``(n, F)``, row for row: *frozen*, trained on raw images of
        the training folds and applied to the method's output of the held-out subjects.

    Raises
    ------
    DataError
        If there are fewer than two sites, or a site of fewer than two subjects.
    """

    def predict(known: np.ndarray, names: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, Training]:
        model = make_pipeline(
            SimpleImputer(keep_empty_features=True),
            StandardScaler(),
            FunctionTransformer(_without_outliers),
            LogisticRegression(class_weight="balanced", max_iter=_STEPS),
        ).fit(known, names)
        steps, accuracy = int(model[-1].n_iter_.max()), float(model.score(known, names))
        loss = float(log_loss(names, model.predict_proba(known), labels=model.classes_))
        return model.predict(unknown), Training(steps, loss, accuracy, steps < _STEPS)

    return _probe(predict, np.asarray(features, float), site, subject, FOLDS, seed, trained_on)


def cnn_site_probe(
    slices: np.ndarray, site: Labels, subject: Labels, seed: int = 0, trained_on: np.ndarray | None = None
) -> ProbeResult:
    """The same with a small convolutional network on ``(n, S, P, P)`` slices of :func:`probe_slices`, 3 folds. Needs torch.

    It sees each slice and its high-pass, and is trained until it knows the training images or for 150 epochs (``trainings`` tells which);
    an epoch takes about .01 CPU s an image. The same seed gives the same answer. Cannot see: what is outside the slices; marks for which
    so few images and so small a network do not suffice.

    Raises
    ------
    DataError
        As :func:`site_probe`.
    """
    from mmh_ray.evaluation.probes.convolutional import train_classifier

    def predict(known: np.ndarray, names: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, Training]:
        kinds, codes = np.unique(names, return_inverse=True)
        classify, training = train_classifier(known, codes, seed)
        return kinds[classify(unknown)], training

    return _probe(predict, slices, site, subject, CNN_FOLDS, seed, trained_on)


def pattern_site_probe(detail: np.ndarray, site: Labels, subject: Labels, seed: int = 0) -> ProbeResult:
    """Matched filter: is an image's fine detail that of a site's images? Trained on the method's own output, as all retrained probes.

    In every training fold a site's pattern is the mean of its images' details less the mean of all sites' (the fingerprint of a sensor:
    Lukáš, Fridrich & Goljan 2006); voxels count inversely to their spread within sites; a held-out image is of the site whose pattern it
    correlates with best. It finds a fixed pattern that is white and far below the noise, of which no feature and few slices tell. Cannot
    see: what lies outside the block; marks that are not at the same voxels in every image.

    Parameters
    ----------
    detail:
        ``(n, …)`` of :func:`mmh_ray.evaluation.metrics.features.fine_detail`, of images whose grids have one shape.

    Raises
    ------
    DataError
        As :func:`site_probe`.
    """
    flat = detail.reshape(len(detail), -1)
    return _probe(_closest_pattern, flat, site, subject, FOLDS, seed, None)


def _closest_pattern(known: np.ndarray, names: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, None]:
    kinds, codes = np.unique(names, return_inverse=True)
    means = np.stack([known[codes == code].mean(axis=0, dtype=np.float32) for code in range(len(kinds))])
    spread = np.sqrt(((known - means[codes]) ** 2).mean(axis=0))
    inside = spread > _TINY
    weight = inside / np.maximum(spread, np.median(spread[inside]) if inside.any() else 1)
    patterns = (means - means.mean(axis=0)) * weight
    patterns /= np.maximum(np.linalg.norm(patterns, axis=1, keepdims=True), _TINY)
    return kinds[((unknown - means.mean(axis=0)) * weight @ patterns.T).argmax(axis=1)], None


def _probe(
    predict: Predict,
    output: np.ndarray,
    site: Labels,
    subject: Labels,
    folds: int,
    seed: int,
    trained_on: np.ndarray | None,
) -> ProbeResult:
    names = np.asarray(site, str)
    source = output if trained_on is None else np.asarray(trained_on, output.dtype)
    predicted, trainings = np.empty_like(names), list[Training]()
    for training, tested in _splits(names, np.asarray(subject, str), folds, seed):
        predicted[tested], ended = predict(source[training], names[training], output[tested])
        trainings += [] if ended is None else [ended]
    chance = 1 / len(np.unique(names))
    accuracy, high = _balanced(names, predicted), _chance_high(names, predicted, seed)
    return ProbeResult(accuracy, chance, high, predicted == names, predicted, tuple(trainings))


def _splits(site: np.ndarray, subject: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Folds by subject in which every site has its share of images."""
    people = {name: len(np.unique(subject[site == name])) for name in np.unique(site)}
    if len(people) < 2 or min(people.values()) < 2:
        seen = ", ".join(f"{name}: {count}" for name, count in people.items())
        raise DataError(f"subjects by site {seen}", "two sites of two subjects or more", "Leave small sites out.")
    splitter = StratifiedGroupKFold(min(folds, *people.values()), shuffle=True, random_state=seed)
    return splitter.split(site, site, subject)


def _balanced(site: np.ndarray, predicted: np.ndarray) -> float:
    return float(recall_score(site, predicted, labels=np.unique(site), average="macro"))


def _chance_high(site: np.ndarray, predicted: np.ndarray, seed: int) -> float:
    _, truth, counts = np.unique(site, return_inverse=True, return_counts=True)
    weights = 1 / (len(counts) * counts[truth])
    rng = np.random.default_rng(seed)
    drawn = [float(weights[rng.permutation(predicted) == site].sum()) for _ in range(_SHUFFLES)]
    return float(np.percentile(drawn, 95))


def _without_outliers(features: np.ndarray) -> np.ndarray:
    return np.clip(features, -_OUTLIER, _OUTLIER)
