"""Holds the result of a site probe, and how its training ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class ProbeTraining(NamedTuple):
    """How the training of a probe ended.

    Attributes
    ----------
    epochs:
        Epochs of a network, or steps of a regression.
    loss, accuracy:
        Mean loss over the training images, and the share of them that the probe classifies correctly.
    converged:
        Whether training ended before its limit.
    """

    epochs: int
    loss: float
    accuracy: float
    converged: bool


@dataclass(frozen=True)
class ProbeResult:
    """Result of a site probe.

    Attributes
    ----------
    balanced_accuracy:
        Mean over sites of the share of their images that are classified correctly, 0 to 1; after harmonization, lower
        is better down to ``chance``.
    chance:
        ``1 / sites``: the mean balanced accuracy of guessing.
    chance_high:
        95th percentile of the balanced accuracy when the predictions are randomly permuted; above it, sites can be
        recognised. It treats images as independent, so with several images per person it is slightly too low.
    correct:
        ``(n,)`` bool, by a probe that was trained without the image's subject; for
        :func:`mmh_ray.evaluation.statistics.bootstrap.bootstrap` with the sites as strata.
    predicted:
        ``(n,)`` site names.
    trainings:
        How training ended in each fold; empty for a probe without iterative training.
    """

    balanced_accuracy: float
    chance: float
    chance_high: float
    correct: np.ndarray
    predicted: np.ndarray
    trainings: tuple[ProbeTraining, ...] = ()
