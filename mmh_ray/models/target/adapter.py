"""What stage 2 adds to the frozen global model for one site and sequence: an intensity curve and low-rank updates of the convolutions.

peft, which brings transformers, takes seconds to import: only who has adapters pays for it.
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
from scipy import ndimage
from torch import Tensor, nn

from mmh_ray.errors import ModelError
from mmh_ray.imaging.intensity import QUANTILES, noise_level, quantile_function, tissue_quantiles
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.sanity import INTENSITIES

LAYERS = r".*\.(conv1|conv2)|conv_in|conv_out"
"""Layers of the U-Net that are updated."""

KNOTS = 64
"""Of the curve between unified and site intensity."""
CURVE_ENDS = 10.0
"""Greatest intensity that a knot of the curve can have; less than 1 % of a brain is brighter than the last one."""
LEAST_STEP = 1e-6
"""By which knots must be apart: the curve is used in float32, where closer ones may be one."""
MOST_NOISE, MOST_BLUR = 1.0, 10.0
"""Of a site's scans: standard deviation in unit intensity, and in voxels of the working grid."""
_INNER = slice(2, 257, 4)


@dataclass(frozen=True)
class SiteStyle:
    """The look of a site's scans of one sequence, from the scans alone.

    Attributes
    ----------
    unified, site:
        ``(64,)`` knots of the increasing curve from unified to site intensity, both in unit intensity.
    quantiles:
        ``(257,)`` mean quantile function of the scans' brains.
    noise:
        Standard deviation of the scans' noise, unit intensity.
    blur:
        Standard deviation, in voxels, of the point spread before the curve, where no adapter learned it.
    """

    unified: np.ndarray
    site: np.ndarray
    quantiles: np.ndarray
    noise: float
    blur: float = 0.0

    @classmethod
    def fit(cls, unified: Sequence[np.ndarray], scans: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> SiteStyle:
        """From scans ``(X, Y, Z)`` in unit intensity and the same after the global model.

        The curve takes the mean quantile function of the slightly smoothed unified images to that of the scans, on which noise has little
        influence: the people are the same, so their anatomies cancel out. What noise the scans have more is added to the unified images
        first: it widens the peaks of a histogram, and the curve would else make contrast of it. (A regression of scan on unified
        intensity was tried: it is flat within a tissue, where what varies in both is unrelated, and loses the tails of the histogram.)
        """

        def mean(function: Callable[[np.ndarray, np.ndarray], Any], volumes: Sequence[np.ndarray]) -> np.ndarray:
            return np.mean([function(volume, mask) for volume, mask in zip(volumes, masks, strict=True)], axis=0)

        noise, own = float(mean(noise_level, scans)), float(mean(noise_level, unified))
        heights = _rising(mean(tissue_quantiles, scans)[_INNER], 1e-6)
        plain = _rising(mean(tissue_quantiles, unified)[_INNER], 1e-5)
        wanted = noise * (plain[-1] - plain[0]) / (heights[-1] - heights[0])
        grain = np.random.default_rng(0).standard_normal(unified[0].shape) * np.sqrt(max(0.0, wanted**2 - own**2))
        noisy = [(volume + grain * mask).astype(np.float32) for volume, mask in zip(unified, masks, strict=True)]
        knots = _rising(mean(tissue_quantiles, noisy)[_INNER], 1e-5)
        return cls(knots, heights, mean(lambda volume, mask: quantile_function(volume[mask]), scans), noise)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> SiteStyle:
        """From the plain lists and numbers of a bundle, whoever wrote them.

        Raises
        ------
        KeyError, TypeError, ValueError
            If one is missing or of another kind, or they are no curve, quantile function, noise or point spread of images.
        """
        least, greatest = INTENSITIES
        curve: dict[str, np.ndarray] = {}
        for name in ("unified", "site", "quantiles"):
            given = facts[name]
            plain = isinstance(given, list) and all(type(value) in (int, float) for value in given)
            if not plain or not all(least <= value <= greatest for value in given):  # NaN is neither
                raise ValueError(f"style.{name} is no list of intensities from {least:g} to {greatest:g}")
            curve[name] = np.array(given, dtype=np.float64)
        knots, heights = curve["unified"], curve["site"]
        if not 2 <= len(knots) == len(heights) <= len(QUANTILES):
            raise ValueError(f"style.unified and style.site are no curve: {len(knots)} and {len(heights)} knots")
        if knots.max() > CURVE_ENDS or heights.max() > CURVE_ENDS or min(knots.min(), heights.min()) < -CURVE_ENDS:
            raise ValueError(f"style.unified and style.site are no curve from {-CURVE_ENDS:g} to {CURVE_ENDS:g}")
        if not ((np.diff(knots.astype(np.float32)) >= LEAST_STEP) & (np.diff(heights) > 0)).all():
            raise ValueError("style.unified and style.site do not increase from knot to knot")
        if len(curve["quantiles"]) != len(QUANTILES) or (np.diff(curve["quantiles"]) < 0).any():
            raise ValueError(f"style.quantiles are not {len(QUANTILES)} values that never fall")
        noise, blur = facts["noise"], facts["blur"]
        if not (0 <= noise <= MOST_NOISE and 0 <= blur <= MOST_BLUR):
            raise ValueError(f"style.noise and style.blur are not 0 to {MOST_NOISE:g} and 0 to {MOST_BLUR:g}")
        return cls(**curve, noise=float(noise), blur=float(blur))

    def noise_left(self, unified: float) -> float:
        """Standard deviation of the noise to leave in an image of the site's look, of the level left in unified ones.

        The site's own at most, and no more than the curve makes of the unified level: nobody is served by noise put back.
        """
        slope = (self.site[-1] - self.site[0]) / (self.unified[-1] - self.unified[0])
        return float(min(self.noise, slope * unified))

    def apply(self, unified: Tensor) -> Tensor:
        """Site intensity of unified intensity, any shape, differentiable; slope of the end pieces goes on beyond the end knots."""
        knots, heights = (
            torch.as_tensor(v, dtype=unified.dtype, device=unified.device) for v in (self.unified, self.site)
        )
        piece = torch.bucketize(unified.detach(), knots[1:-1])
        slope = heights.diff() / knots.diff()
        return heights[:-1][piece] + slope[piece] * (unified - knots[:-1][piece])

    def moved(self, unified: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A unified volume ``(..., X, Y, Z)`` with the point spread and the curve, float32, zero outside the mask."""
        soft = point_spread(unified, mask, self.blur)
        return self.apply(torch.from_numpy(np.ascontiguousarray(soft, np.float32))).numpy() * mask


def _rising(quantiles: np.ndarray, least: float) -> np.ndarray:
    """Quantiles that increase by ``least`` or more from one to the next."""
    return np.maximum.accumulate(quantiles) + least * np.arange(len(quantiles))


def point_spread(volume: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """``(..., X, Y, Z)`` smoothed by a Gaussian of ``sigma`` voxels that does not reach outside the mask; as it is for 0."""
    if not sigma:
        return volume
    axes = (-3, -2, -1)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return ndimage.gaussian_filter(volume * mask, sigma, axes=axes) / np.maximum(weight, 1e-6) * mask


def attach(model: GlobalHarmonizer, name: str, rank: int, state: dict[str, Tensor] | None = None) -> None:
    """Add an adapter to the model's denoiser, switched off; its weights are ``state``, or such as change nothing yet.

    Every other parameter is frozen. Raises ModelError where ``state`` does not fit.
    """
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    unet: nn.Module = model.denoiser.unet
    if state is not None:
        _check_size(unet, rank, state)
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what we want
        torch.manual_seed(0)
        inject_adapter_in_model(settings, unet, adapter_name=name)
    if state is not None:
        unknown = set(state) ^ set(get_peft_model_state_dict(unet, adapter_name=name))
        shapes = {key: tuple(value.shape) for key, value in get_peft_model_state_dict(unet, adapter_name=name).items()}
        wrong = sorted(unknown or {key for key, value in state.items() if tuple(value.shape) != shapes[key]})
        if wrong:
            raise _foreign(", ".join(wrong[:3]))
        set_peft_model_state_dict(unet, state, adapter_name=name)
    unet.to(next(model.parameters()).device)
    wear(model, None)


def _check_size(unet: nn.Module, rank: int, state: Mapping[str, Tensor]) -> None:
    """ModelError where an adapter has another number of weights than its rank gives it on the layers, before any are made."""
    layers: list[Any] = [module for name, module in unet.named_modules() if re.fullmatch(LAYERS, name)]
    sides = sum(layer.weight[0].numel() + len(layer.weight) for layer in layers)
    found = sum(tensor.numel() for tensor in state.values())
    if found != rank * sides:
        raise _foreign(f"{found} for rank {rank}, which is {rank * sides}")


def _foreign(what: str) -> ModelError:
    return ModelError(f"an adapter with other weights ({what} ...)", "one of this model", "Train it on this model.")


def state_of(model: GlobalHarmonizer, name: str) -> dict[str, Tensor]:
    """Weights of an adapter, float32 on the CPU."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model.denoiser.unet, adapter_name=name)
    return {key: value.detach().float().cpu().contiguous().clone() for key, value in found.items()}


@contextmanager
def wearing(model: GlobalHarmonizer, name: str) -> Iterator[None]:
    """The model with one of its adapters; without any again afterwards."""
    wear(model, name)
    try:
        yield
    finally:
        wear(model, None)


def wear(model: GlobalHarmonizer, name: str | None) -> None:
    """Switch one adapter of the model on, or all off; the weights of one that is on are trainable."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.denoiser.unet.modules():
        if isinstance(module, BaseTunerLayer):
            if name is not None:
                module.set_adapter(name)
            module.enable_adapters(name is not None)
