"""Estimates and removes the receive field of a registered brain: a smooth polynomial besides the template's tissues."""

from __future__ import annotations

from itertools import product

import numpy as np

_DEGREE = 4
"""Degree of the polynomial; over a brain, even the fields of 7 T scanners are this smooth."""
_PASSES = 3
_DARKEST = 0.02
"""Lower bound of intensities, as a share of the median, before their logarithm is taken."""


def without_field(image: np.ndarray, tissues: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Remove the field inside the region; the geometric mean there is kept.

    The logarithm of the image is modelled as one value per tissue plus a polynomial of the position. Both are fitted
    together by iteratively re-weighted least squares (Huber, 1964), so that lesions and misfits of the template have
    little influence. N4, which has no information about tissues, leaves much of a strong field.

    Parameters
    ----------
    image:
        ``(I, J, K)`` on the template's grid; 0 is zero signal.
    tissues:
        ``(3, I, J, K)`` the template's tissue shares.
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
    """Fit ``(terms,)`` coefficients of a design ``(n, terms)`` to values ``(n,)`` with Huber's weights."""
    weights: np.ndarray = np.ones(len(values))
    coefficients = np.zeros(design.shape[1])
    for _ in range(_PASSES):
        weighted_design = design * weights[:, None]
        weighted_values = values * weights
        coefficients = np.linalg.lstsq(weighted_design, weighted_values, rcond=None)[0]
        residuals = np.abs(values - design @ coefficients)
        # 1.4826 times the median absolute residual is the standard deviation of a normal distribution.
        usual = 2 * 1.4826 * float(np.median(residuals))
        relative = residuals / max(usual, 1e-9)
        weights = np.sqrt(1 / np.maximum(1, relative))
    return coefficients


def _polynomial(places: np.ndarray) -> np.ndarray:
    """All monomials of positions ``(n, 3)``, scaled to -1 to 1, up to the degree, without the constant."""
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
