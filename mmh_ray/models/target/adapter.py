"""What stage 2 adds to the frozen global model for one site and sequence: an intensity curve, and an adapter of
low-rank updates of the convolutions.

peft, which imports transformers, takes seconds to import, so it is imported only where adapters are used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmh_ray.errors import ModelError
from mmh_ray.imaging.intensity import QUANTILES, noise_level, quantile_function, tissue_quantiles
from mmh_ray.imaging.smoothing import smooth_inside
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.sanity import INTENSITIES

LAYERS = r".*\.(conv1|conv2)|conv_in|conv_out"
"""Layers of the U-Net that are updated."""

CURVE_ENDS = 10.0
"""Largest absolute intensity of a knot of the curve; less than 1 % of a brain is brighter than its last knot."""
LEAST_STEP = 1e-6
"""Smallest distance between knots: the curve is used in float32, where closer knots may be equal."""
MOST_NOISE = 1.0
"""Largest noise of a site's scans: standard deviation in unit intensity."""
MOST_BLUR = 10.0
"""Largest blur of a site's scans: standard deviation in voxels of the working grid."""
_INNER = slice(2, 257, 4)
"""The 64 of 257 quantiles that become the curve's knots: every fourth, without the extremes, which are noise."""


@dataclass(frozen=True)
class SiteStyle:
    """The style of a site's scans of one sequence, measured from the scans.

    Attributes
    ----------
    unified, site:
        ``(64,)`` knots of the increasing curve from unified to site intensity, both in unit intensity.
    quantiles:
        ``(257,)`` mean quantile function of the scans' brains.
    noise:
        Standard deviation of the scans' noise in unit intensity.
    blur:
        Standard deviation, in voxels, of the point spread that is applied before the curve; 0 where an adapter learned
        the sharpness.
    """

    unified: np.ndarray
    site: np.ndarray
    quantiles: np.ndarray
    noise: float
    blur: float = 0.0

    @classmethod
    def fit(cls, unified: Sequence[np.ndarray], scans: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> SiteStyle:
        """Fit the style to scans ``(X, Y, Z)`` in unit intensity and their unified images.

        The curve maps the mean tissue quantiles of the unified images to those of the scans. Both show the same people,
        so their anatomies cancel out, and both are slightly smoothed against noise. If the scans have more noise, noise
        is added to the unified images first: noise widens the peaks of a histogram, and the curve would turn that into
        contrast. (A regression of scan on unified intensity was tried. Within a tissue the two are unrelated, so it is
        flat there, and it loses the tails of the histogram.)
        """
        scan_noise = float(_mean_of(noise_level, scans, masks))
        unified_noise = float(_mean_of(noise_level, unified, masks))
        heights = _curve_points(scans, masks, least_step=1e-6)
        plain_knots = _curve_points(unified, masks, least_step=1e-5)
        # The scans' noise in unified units, by the mean slope of the curve; add what the unified images lack of it.
        same_noise = scan_noise * np.ptp(plain_knots) / np.ptp(heights)
        missing = np.sqrt(max(0.0, same_noise**2 - unified_noise**2))
        grain = np.random.default_rng(0).standard_normal(unified[0].shape) * missing
        noisy = []
        for volume, mask in zip(unified, masks, strict=True):
            with_grain = volume + grain * mask
            noisy.append(with_grain.astype(np.float32))
        knots = _curve_points(noisy, masks, least_step=1e-5)
        quantiles = _mean_of(_brain_quantiles, scans, masks)
        return cls(knots, heights, quantiles, scan_noise)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> SiteStyle:
        """Read the untrusted lists and numbers of a bundle.

        Raises
        ------
        KeyError, TypeError, ValueError
            If one is missing, has the wrong type or is not plausible for images.
        """
        unified = _intensities(facts, "unified")
        site = _intensities(facts, "site")
        quantiles = _intensities(facts, "quantiles")
        _check_curve(unified, site)
        if len(quantiles) != len(QUANTILES) or (np.diff(quantiles) < 0).any():
            raise ValueError(f"style.quantiles are not {len(QUANTILES)} values that never fall")
        noise = facts["noise"]
        blur = facts["blur"]
        if not (0 <= noise <= MOST_NOISE and 0 <= blur <= MOST_BLUR):
            raise ValueError(f"style.noise and style.blur are not 0 to {MOST_NOISE:g} and 0 to {MOST_BLUR:g}")
        return cls(unified, site, quantiles, float(noise), float(blur))

    def noise_left(self, unified: float) -> float:
        """Standard deviation of the noise to leave in an image in the site's style, from that left in unified images.

        At most the site's own noise, and at most the curve's image of the unified noise: adding noise helps nobody.
        """
        slope = np.ptp(self.site) / np.ptp(self.unified)  # mean slope of the curve
        noise_by_curve = slope * unified
        return float(min(self.noise, noise_by_curve))

    def apply(self, unified: Tensor) -> Tensor:
        """Apply the curve to unified intensities of any shape; differentiable.

        Beyond the end knots the slopes of the end pieces continue.
        """
        knots = torch.as_tensor(self.unified, dtype=unified.dtype, device=unified.device)
        heights = torch.as_tensor(self.site, dtype=unified.dtype, device=unified.device)
        slopes = heights.diff() / knots.diff()
        inner_knots = knots[1:-1]
        piece = torch.bucketize(unified.detach(), inner_knots)
        first_knot = knots[:-1][piece]
        first_height = heights[:-1][piece]
        slope = slopes[piece]
        return first_height + slope * (unified - first_knot)

    def moved(self, unified: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Apply point spread and curve to unified volumes ``(..., X, Y, Z)``; float32, zero outside the mask."""
        soft = point_spread(unified, mask, self.blur)
        contiguous = np.ascontiguousarray(soft, np.float32)
        moved = self.apply(torch.from_numpy(contiguous))
        return moved.numpy() * mask


def _mean_of(
    function: Callable[[np.ndarray, np.ndarray], Any], volumes: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> np.ndarray:
    """Mean over the volumes of a function of volume and mask."""
    values = [function(volume, mask) for volume, mask in zip(volumes, masks, strict=True)]
    return np.mean(values, axis=0)


def _brain_quantiles(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return quantile_function(volume[mask])


def _intensities(facts: Mapping[str, Any], name: str) -> np.ndarray:
    """A list of intensities from the facts of a bundle; ValueError for anything else."""
    values = facts[name]
    least, greatest = INTENSITIES
    is_list = isinstance(values, list)
    if not is_list or not all(_is_number_within(value, least, greatest) for value in values):
        raise ValueError(f"style.{name} is not a list of intensities from {least:g} to {greatest:g}")
    return np.array(values, dtype=np.float64)


def _is_number_within(value: Any, least: float, greatest: float) -> bool:
    is_number = type(value) in (int, float)  # a bool is not
    return is_number and least <= value <= greatest  # NaN is not


def _check_curve(knots: np.ndarray, heights: np.ndarray) -> None:
    """ValueError unless these are the knots of an increasing curve between plausible intensities."""
    if not 2 <= len(knots) == len(heights) <= len(QUANTILES):
        raise ValueError(f"style.unified and style.site are not a curve: {len(knots)} and {len(heights)} knots")
    largest_knot = np.abs(knots).max()
    largest_height = np.abs(heights).max()
    if max(largest_knot, largest_height) > CURVE_ENDS:
        raise ValueError(f"style.unified and style.site are not within {-CURVE_ENDS:g} to {CURVE_ENDS:g}")
    as_used = knots.astype(np.float32)
    steps_apart = np.diff(as_used) >= LEAST_STEP
    rises = np.diff(heights) > 0
    if not (steps_apart & rises).all():
        raise ValueError("style.unified and style.site do not increase from knot to knot")


def _rising(quantiles: np.ndarray, least: float) -> np.ndarray:
    """Quantiles changed to increase by at least ``least`` from one to the next."""
    never_falling = np.maximum.accumulate(quantiles)
    numbers = np.arange(len(quantiles))
    return never_falling + least * numbers


def _curve_points(volumes: Sequence[np.ndarray], masks: Sequence[np.ndarray], least_step: float) -> np.ndarray:
    """The inner mean tissue quantiles, ``(64,)``, changed to increase by at least ``least_step``."""
    quantiles = _mean_of(tissue_quantiles, volumes, masks)
    return _rising(quantiles[_INNER], least_step)


def point_spread(volume: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth ``(..., X, Y, Z)`` inside the mask by a Gaussian of ``sigma`` voxels; 0 leaves it unchanged."""
    if not sigma:
        return volume
    return smooth_inside(volume, mask, sigma) * mask


def attach(model: GlobalHarmonizer, name: str, rank: int, state: dict[str, Tensor] | None = None) -> None:
    """Add an adapter to the model's denoiser, switched off, with weights ``state``; None: an adapter without effect.

    All other parameters are frozen. Raises ModelError if ``state`` does not fit.
    """
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    unet: nn.Module = model.denoiser.unet
    if state is not None:
        _check_size(unet, rank, state)
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
        torch.manual_seed(0)
        inject_adapter_in_model(settings, unet, adapter_name=name)
    if state is not None:
        _check_shapes(state, get_peft_model_state_dict(unet, adapter_name=name))
        set_peft_model_state_dict(unet, state, adapter_name=name)
    unet.to(next(model.parameters()).device)
    switch_adapter(model, None)


def _check_size(unet: nn.Module, rank: int, state: Mapping[str, Tensor]) -> None:
    """ModelError if the number of weights does not match the rank; checked before the layers are built."""
    inputs_and_outputs = 0
    for name, module in unet.named_modules():
        if re.fullmatch(LAYERS, name):
            weight: Any = module.weight
            inputs_and_outputs += weight[0].numel()
            inputs_and_outputs += len(weight)
    expected = rank * inputs_and_outputs
    count = sum(tensor.numel() for tensor in state.values())
    if count != expected:
        raise _misfit(f"{count} for rank {rank}, which is {expected}")


def _check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """ModelError if names or shapes of the weights do not match the layers."""
    wrong = set(state) ^ set(expected)
    if not wrong:
        for name, tensor in state.items():
            if tensor.shape != expected[name].shape:
                wrong.add(name)
    if wrong:
        first_three = sorted(wrong)[:3]
        raise _misfit(", ".join(first_three))


def _misfit(what: str) -> ModelError:
    return ModelError(f"an adapter with other weights ({what} ...)", "one of this model", "Train it on this model.")


def state_of(model: GlobalHarmonizer, name: str) -> dict[str, Tensor]:
    """Weights of an adapter, float32 on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model.denoiser.unet, adapter_name=name)
    return {key: value.detach().float().cpu().contiguous().clone() for key, value in state.items()}


@contextmanager
def with_adapter(model: GlobalHarmonizer, name: str) -> Iterator[None]:
    """Switch on one adapter of the model while the block runs."""
    switch_adapter(model, name)
    try:
        yield
    finally:
        switch_adapter(model, None)


def switch_adapter(model: GlobalHarmonizer, name: str | None) -> None:
    """Switch on one adapter of the model, whose weights are then trainable; None switches all off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.denoiser.unet.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if name is not None:
            module.set_adapter(name)
        module.enable_adapters(name is not None)
