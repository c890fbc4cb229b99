"""What a site probe found, and how its training ended."""

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
        Mean loss over the training images, and the share of them that the probe tells right.
    converged:
        Whether it ended by itself.
    """

    epochs: int
    loss: float
    accuracy: float
    converged: bool


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes
    ----------
    balanced_accuracy:
        Mean over sites of the share of their images that are told right, 0 to 1; after harmonization, lower is better
        down to ``chance``.
    chance:
        ``1 / sites``: what guessing reaches on average.
    chance_high:
        What 95 of 100 guessers stay below: the 95th percentile when the predictions are dealt to the images anew. Above
        it sites can be told. It takes images for independent, so with several images a person it is a little low.
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
    trainings: tuple[ProbeTraining, ...] = ()
