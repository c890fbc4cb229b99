"""Checks that a model's statistics, curves and quantile functions are within plausible bounds."""

from __future__ import annotations

from torch import Tensor

from mmh_ray.errors import ModelError
from mmh_ray.models.global_harmonizer import GlobalHarmonizer

INTENSITIES = (-10.0, 100.0)
"""Bounds of every quantile of a brain in unit intensity, including its brightest voxel."""

_ROUNDING = 1e-5  # rounding: a float32 quantile function may fall by this much from one value to the next
_STATISTICS = {"domain_quantiles": INTENSITIES, "domain_cumulative": (-0.01, 1.01), "domain_moments": INTENSITIES}
"""Least and greatest value of the buffers of a :class:`GlobalHarmonizer`."""


def check_statistics(model: GlobalHarmonizer, place: str, remedy: str) -> None:
    """Raise ModelError unless the model's statistics of the unified domain are plausible for images."""
    for name, (low, high) in _STATISTICS.items():
        values = model.get_buffer(name)
        if not _all_within(values, low, high):
            lowest = f"{values.min():.3g}"
            highest = f"{values.max():.3g}"
            received = f"{place}: {name} from {lowest} to {highest}"
            raise ModelError(received, f"{low:g} to {high:g}", remedy)
    check_quantiles(model.domain_quantiles, f"{place}: domain_quantiles", remedy)


def check_quantiles(quantiles: Tensor, place: str, remedy: str) -> None:
    """Raise ModelError unless the last axis of ``(..., Q)`` holds plausible quantile functions of brains."""
    low, high = INTENSITIES
    steps = quantiles.diff(dim=-1)
    falls = bool((steps < -_ROUNDING).any())
    if falls or not _all_within(quantiles, low, high):
        received = f"{place} that are no quantile functions"
        expected = f"values from {low:g} to {high:g} that never fall"
        raise ModelError(received, expected, remedy)


def _all_within(values: Tensor, low: float, high: float) -> bool:
    """Whether all values are between two bounds; NaN is not."""
    is_inside = (values >= low) & (values <= high)
    return bool(is_inside.all())
