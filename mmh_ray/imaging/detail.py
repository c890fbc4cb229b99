"""Detail projection: the style from the model, every edge and lesion from the scan, and less of its noise.

The affine maps source→styled of small windows are those of the guided filter (He et al., TPAMI 2013). What they add to the model's own
image is detail where it rises above the scan's noise, and is weighed by a local Wiener filter (Lee, TPAMI 1980).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

REGULARISATION = 1e-4
"""Added to the local variance of the scan and to its covariance with the styled image (unit intensity squared): in a window that is
flatter than that nothing can be learned, and the scan's own variation goes through as it is."""

NOISE = 0.019
"""Standard deviation, in unit intensity, of the noise that is left in every scan of the unified domain: a part of its look, too."""


def local_affine(
    source: np.ndarray, styled: np.ndarray, mask: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset ``(X, Y, Z)`` of the affine maps source→styled, fitted in cubic windows inside the mask.

    Each voxel's window gives the least-squares ``a, b`` with ``styled ~ a source + b``, with a slope of one where the scan is flat: an
    image that is the scan itself has slope one and offset zero everywhere. The coefficients are then averaged over the windows that
    cover a voxel, the offsets shifted so that the windows' means are again those of ``styled``, and both continued outside the mask by
    their neighbours, so that there is no seam at its border.
    """
    weight = mask.astype(np.float32)
    count = np.maximum(_mean(weight, radius), 1e-6)

    def mean(values: np.ndarray) -> np.ndarray:
        return _mean(values * weight, radius) / count

    source_mean, styled_mean = mean(source), mean(styled)
    covariance = mean(source * styled) - source_mean * styled_mean
    variance = np.maximum(mean(source * source) - source_mean**2, 0)
    slope = (covariance + REGULARISATION) / (variance + REGULARISATION)
    offset = styled_mean - slope * source_mean
    slope, offset = mean(slope), mean(offset)
    offset += mean(styled - slope * source - offset)
    return continued(slope, mask), continued(offset, mask)


def add_detail(
    styled: np.ndarray, projected: np.ndarray, noise: np.ndarray, mask: np.ndarray, left: float = NOISE
) -> np.ndarray:
    """``styled + w (projected - styled)``: ``w`` is near 1 where their difference varies more than noise does; elsewhere it leaves noise of
    the level ``left``. A scan with less noise than that stays whole.

    Parameters
    ----------
    styled:
        ``(I, J, K)`` the model's image on the scan's grid.
    projected:
        ``(I, J, K)`` the scan under the local affine maps.
    noise:
        ``(I, J, K)`` standard deviation of the noise in ``projected``.
    mask:
        ``(I, J, K)`` bool; what lies outside takes no part in the filter.
    left:
        Standard deviation of the noise to leave.
    """
    detail = projected - styled
    power = _mean(detail**2 * mask, 1) / np.maximum(_mean(mask.astype(np.float32), 1), 1e-6)
    least = np.minimum(1, left / np.maximum(noise, 1e-6))
    return styled + np.maximum(least, 1 - noise**2 / np.maximum(power, 1e-12)) * detail


def continued(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values outside the mask replaced by those of the nearest voxel inside."""
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _mean(values: np.ndarray, radius: int) -> np.ndarray:
    return ndimage.uniform_filter(values, 2 * radius + 1, mode="constant")
