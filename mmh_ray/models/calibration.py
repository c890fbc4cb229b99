"""The last step into the unified domain: one increasing curve per sequence, the same for every scan.

A network trained with squared error draws what it is unsure of towards the middle: fluid comes out too near to tissue, and a cyst pales.
How far it does so on average is seen on simulated people kept aside, whose truth is known; the curve undoes it. Being the cohort's and
no scan's own, it cannot erase anybody's anatomy as matching each scan's histogram would.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mmh_ray.config import HarmonizeConfig
from mmh_ray.imaging.intensity import MonotoneMap, mean_quantile_function, tissue_quantiles
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.sampling import estimate_planes, fuse

_NOISY_ENDS = 2  # of 257 quantiles


def fit_calibration(
    model: GlobalHarmonizer,
    sequence: int,
    examples: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    settings: HarmonizeConfig,
) -> np.ndarray:
    """Mean tissue quantiles ``(2, 253)`` of what the model makes of scans, and of the truth.

    Parameters
    ----------
    sequence:
        Index into the model's sequences.
    examples:
        Scan, truth in the unified domain and mask ``(X, Y, Z)``, of people that the model was not trained on.
    """
    made, wanted = [], []
    for scan, truth, mask in examples:
        fused = fuse(estimate_planes(model, scan, mask, sequence, settings), mask, settings)
        made.append(tissue_quantiles(fused, mask))
        wanted.append(tissue_quantiles(truth, mask))
    inner = slice(_NOISY_ENDS, -_NOISY_ENDS)
    return np.stack([mean_quantile_function(made)[inner], mean_quantile_function(wanted)[inner]])


def unify(
    model: GlobalHarmonizer, estimates: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
) -> np.ndarray:
    """One volume ``(X, Y, Z)`` in the unified domain of the planes' estimates ``(planes, X, Y, Z)``: fused, then calibrated."""
    curve = MonotoneMap.between(*model.calibration[sequence].cpu().numpy())
    return np.clip(curve.apply_inside(fuse(estimates, mask, settings), mask), 0, None)


def harmonize_volume(
    model: GlobalHarmonizer, image: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
) -> np.ndarray:
    """A prepared volume in the unified domain, ``(X, Y, Z)`` float32 unit intensity; arguments as of
    :func:`mmh_ray.models.sampling.estimate_planes`."""
    return unify(model, estimate_planes(model, image, mask, sequence, settings), mask, sequence, settings)
