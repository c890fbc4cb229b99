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

    The logarithm of the image is modelled as a value for each tissue and a polynomial of the place. Both are fitted
    together, with weights that lesions and misfits of the template do not draw (iteratively re-weighted least squares
    after Huber, 1964). N4, which knows no tissues, leaves much of a strong field.

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
    not_too_dark = np.maximum(values, least)
    log_values = np.log(not_too_dark)
    shares = np.stack([tissue[inside] for tissue in tissues], axis=1)
    places = np.argwhere(inside).astype(np.float64)
    terms = _polynomial(places)
    design = np.concatenate([shares, terms], axis=1)
    coefficients = _robust_fit(design, log_values)
    coefficients_of_terms = coefficients[shares.shape[1] :]
    log_field = terms @ coefficients_of_terms
    gain = np.exp(log_field.mean() - log_field).astype(np.float32)
    corrected = image.astype(np.float32)
    corrected[inside] *= gain
    return corrected


def _robust_fit(design: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients ``(terms,)`` of a design ``(n, terms)`` for values ``(n,)``; far residuals count by Huber's
    weights."""
    weights: np.ndarray = np.ones(len(values))
    coefficients = np.zeros(design.shape[1])
    for _ in range(_PASSES):
        weighted_design = design * weights[:, None]
        weighted_values = values * weights
        coefficients = np.linalg.lstsq(weighted_design, weighted_values, rcond=None)[0]
        residuals = np.abs(values - design @ coefficients)
        # 1.4826 times the median is the standard deviation of what is normally distributed.
        usual = 2 * 1.4826 * float(np.median(residuals))
        relative = residuals / max(usual, 1e-9)
        weights = np.sqrt(1 / np.maximum(1, relative))
    return coefficients


def _polynomial(places: np.ndarray) -> np.ndarray:
    """All monomials of places ``(n, 3)``, brought to -1 to 1, up to the degree, but for the constant."""
    high = places.max(axis=0)
    low = places.min(axis=0)
    middle = (high + low) / 2
    half_width = np.maximum((high - low) / 2, 1)
    centred = (places - middle) / half_width
    x, y, z = centred.T
    exponents = range(_DEGREE + 1)
    monomials = []
    for i, j, k in product(exponents, repeat=3):
        degree = i + j + k
        if 0 < degree <= _DEGREE:
            monomials.append(x**i * y**j * z**k)
    return np.stack(monomials, axis=1)
