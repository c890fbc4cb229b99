"""A small U-Net that learns tissues at one site, to be tried at the others. Needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """A scan for training: image ``(I, J, K)``, mask bool, labels uint8 (0 background, 1 CSF, 2 GM, 3 WM), affine ``(4, 4)``."""

    image: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


class TissueUNet:
    """A trained segmenter (made by :func:`train_unet`)."""

    def segment(self, image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """``(3, I, J, K)`` float32 probabilities as :func:`mmh_ray.evaluation.segmentation.segment_tissues` gives."""
        raise NotImplementedError


def train_unet(examples: Iterable[Example], seed: int = 0, steps: int = 300) -> TissueUNet:
    """Train on the scans of one site; the same seed and scans give the same network."""
    raise NotImplementedError
