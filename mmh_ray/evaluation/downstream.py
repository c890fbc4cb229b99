"""What users do with images: predict age, relate tissue to age and sex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AgeResult:
    """Brain age: ``mae`` years, ``predicted`` ``(n,)`` and ``errors`` ``(n,)`` absolute years, NaN for an image without age;
    ``baseline`` is the MAE of always saying the training subjects' mean age."""

    mae: float
    baseline: float
    predicted: np.ndarray
    errors: np.ndarray


def brain_age(
    features: np.ndarray,
    age: Sequence[float],
    subject: Sequence[str],
    site: Sequence[str] | None = None,
    seed: int = 0,
) -> AgeResult:
    """Ridge regression of age, cross-validated by subject; with ``site``, trained on all sites but the tested one."""
    raise NotImplementedError


def association(values: Sequence[float] | np.ndarray, age: Sequence[float], site: Sequence[str]) -> float:
    """Spearman correlation of a measure with age (or sex as 0 and 1), within sites."""
    raise NotImplementedError
