"""The receive field in a registered brain: what a smooth polynomial explains beside the template's tissues."""

from __future__ import annotations

from itertools import product

import numpy as np

_DEGREE = 4
"""Of the polynomial; fields of 7 T scanners are as smooth as that over a brain."""
_PASSES = 3
_DARKEST = 0.02
"""Share of the median at which intensities are cut off below, before their logarithm is taken."""


def without_field(image: np.ndarray, tissues: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The image without its field inside the region, where its geometric mean stays.

    The logarithm of the image is a value for each tissue and a polynomial of the place, fitted together with weights that lesions
    and misfits of the template do not draw (iteratively re-weighted least squares after Huber, 1964). N4, which knows no tissues,
    leaves much of a strong field.

    Parameters
    ----------
    image:
        ``(I, J, K)`` on the template's grid, 0 where there is no signal.
    tissues:
        ``(3, I, J, K)`` the template's shares.
    inside:
        ``(I, J, K)`` bool, not empty.
    """
    values = image[inside].astype(np.float64)
    least = _DARKEST * float(np.median(values))
    if least <= 0:
        return image
    wanted = np.log(np.maximum(values, least))
    shares = np.stack([tissue[inside] for tissue in tissues], axis=1)
    terms = _polynomial(np.argwhere(inside).astype(np.float64))
    design = np.concatenate([shares, terms], axis=1)
    weight = np.ones(len(wanted))
    coefficients = np.zeros(design.shape[1])
    for _ in range(_PASSES):
        coefficients = np.linalg.lstsq(design * weight[:, None], wanted * weight, rcond=None)[0]
        left = np.abs(wanted - design @ coefficients)
        usual = max(2 * 1.4826 * float(np.median(left)), 1e-9)
        weight = np.sqrt(1 / np.maximum(1, left / usual))
    field = terms @ coefficients[shares.shape[1] :]
    corrected = image.astype(np.float32)
    corrected[inside] *= np.exp(field.mean() - field).astype(np.float32)
    return corrected


def _polynomial(places: np.ndarray) -> np.ndarray:
    """All monomials of places ``(n, 3)``, brought to -1 to 1, up to the degree, but for the constant."""
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    half = np.maximum(np.ptp(places, axis=0) / 2, 1)
    x, y, z = ((places - middle) / half).T
    powers = [power for power in product(range(_DEGREE + 1), repeat=3) if 0 < sum(power) <= _DEGREE]
    return np.stack([x**i * y**j * z**k for i, j, k in powers], axis=1)
