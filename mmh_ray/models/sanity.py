"""Numbers of a model that only make sense within bounds: statistics of the unified domain, curves, quantile
functions."""

from __future__ import annotations

from torch import Tensor

from mmh_ray.errors import ModelError
from mmh_ray.models.global_harmonizer import GlobalHarmonizer

INTENSITIES = (-10.0, 100.0)
"""Between which every quantile of a brain lies in unit intensity, that of its brightest voxel, too."""

_FALLING = 1e-5  # by which a quantile function in float32 may fall from one place to the next
_STATISTICS = {"domain_quantiles": INTENSITIES, "domain_cumulative": (-0.01, 1.01), "domain_moments": INTENSITIES}
"""Least and greatest value of the buffers of a :class:`GlobalHarmonizer`."""


def check_statistics(model: GlobalHarmonizer, place: str, remedy: str) -> None:
    """Raise ModelError unless what the model knows of the unified domain can be that of images."""
    for name, (low, high) in _STATISTICS.items():
        values = model.get_buffer(name)
        if not _all_within(values, low, high):
            lowest = f"{values.min():.3g}"
            highest = f"{values.max():.3g}"
            received = f"{place}: {name} from {lowest} to {highest}"
            raise ModelError(received, f"{low:g} to {high:g}", remedy)
    check_quantiles(model.domain_quantiles, f"{place}: domain_quantiles", remedy)


def check_quantiles(quantiles: Tensor, place: str, remedy: str) -> None:
    """Raise ModelError unless the last axis of a tensor ``(..., Q)`` holds quantile functions of brains in unit
    intensity."""
    low, high = INTENSITIES
    steps = quantiles.diff(dim=-1)
    falls = bool((steps < -_FALLING).any())
    if falls or not _all_within(quantiles, low, high):
        received = f"{place} that are no quantile functions"
        expected = f"values from {low:g} to {high:g} that never fall"
        raise ModelError(received, expected, remedy)


def _all_within(values: Tensor, low: float, high: float) -> bool:
    """Whether all values lie between two bounds; NaN does not."""
    is_inside = (values >= low) & (values <= high)
    return bool(is_inside.all())
