"""Tissue segmentation without training data, and how well two segmentations agree."""

from __future__ import annotations

import numpy as np

TISSUES = ("CSF", "GM", "WM")
"""Order of tissues in probabilities; label ``i + 1`` is tissue ``i``, label 0 the background."""


def segment_tissues(image: np.ndarray, mask: np.ndarray, sequence: str) -> np.ndarray:
    """``(3, I, J, K)`` float32 probabilities of :data:`TISSUES`, zero outside the mask."""
    raise NotImplementedError


def tissue_labels(probabilities: np.ndarray) -> np.ndarray:
    """``(I, J, K)`` uint8: 0 outside, else 1 + the index of the likeliest tissue."""
    raise NotImplementedError


def tissue_volumes(probabilities: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float]:
    """Volume of every tissue in millilitres."""
    raise NotImplementedError


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two boolean arrays."""
    raise NotImplementedError


def tissue_dice(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Dice of every tissue of two label images."""
    raise NotImplementedError


def volume_error(a: np.ndarray, b: np.ndarray) -> float:
    """``|‖a‖ − ‖b‖| / ‖b‖`` of two boolean arrays or probability maps, ``b`` the reference."""
    raise NotImplementedError
