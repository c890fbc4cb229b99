"""A small U-Net that learns tissues at one site and is tried at the others: what a user's own network would make of a method's output.

Works on 16 axial slices of 4 mm pixels, 64 a side. Needs torch and diffusers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmh_ray.config import GridConfig
from mmh_ray.errors import DataError
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.segmentation import TISSUES, mean_dice, mean_volume_error
from mmh_ray.imaging.grid import to_grid, working_affine

SPACING_MM = 4.0
SHAPE = (64, 64, 48)
"""Grid of the network, right, anterior and superior: 256 by 256 by 192 mm."""
EVERY = 3
"""Of the grid's axial slices every third is looked at."""
STEPS = 100

_BATCH = 4
_RATE = 3e-3
_CHANNELS = (8, 16, 32)


class TissueSlices(NamedTuple):
    """Of one image: axial slices ``(16, 64, 64)`` float16, zero outside the brain, and their tissues int8: 0 outside, else 1 + the place in
    :data:`mmh_ray.evaluation.metrics.segmentation.TISSUES`."""

    image: np.ndarray
    labels: np.ndarray


def tissue_slices(image: np.ndarray, mask: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> TissueSlices:
    """What the U-Net sees of an image ``(I, J, K)``, scaled by its own percentiles, and what it should answer."""
    grid = working_affine(affine, mask, GridConfig(spacing_mm=SPACING_MM, shape=SHAPE))

    def sliced(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(to_grid(values, affine, grid, SHAPE)[:, :, ::EVERY], 2, 0)

    shares = np.stack([sliced((labels == label).astype(np.float32)) for label in range(1, len(TISSUES) + 1)])
    inside = sliced(mask.astype(np.float32)) > 0.5
    known = np.where(inside & (shares.max(axis=0) > 0), shares.argmax(axis=0) + 1, 0)
    scaled = np.where(inside, sliced(np.where(mask, scale_by_percentiles(image, mask), 0)), 0)
    return TissueSlices(scaled.astype(np.float16), known.astype(np.int8))


def unet_transfer(
    images: Sequence[TissueSlices], site: Sequence[str], subject: Sequence[str], seed: int = 0, steps: int = STEPS
) -> np.ndarray:
    """``(n, 2)`` mean Dice of the tissues and mean relative volume error of grey and white matter, of images of all sites but one.

    At that one, the site of most images, a U-Net (Ronneberger et al. 2015; ``diffusers.UNet2DModel`` of 8, 16 and 32 channels)
    learns tissues from a method's output: cross-entropy inside the brain, Adam with the rate falling to zero, nothing augmented. Half of
    the subjects teach it, the other half's images of the other sites are its test; then the other way round. Dice: higher is better; volume
    error: lower. Rows of images that are no test are NaN. The same images and seed give the same figures; the global random state is
    left as it was.

    Cannot see: what a segmenter made robust by augmentation would not mind; structures below 4 mm.

    Raises
    ------
    DataError
        If a half of the subjects has no image at that site, or the other half none at another.
    """
    sites, people = np.asarray(site, str), np.asarray(subject, str)
    home = min(Counter(sites).items(), key=lambda item: (-item[1], item[0]))[0]
    order = {name: number % 2 for number, name in enumerate(_home_first(people, people[sites == home]))}
    half = np.array([order[name] for name in people])
    found = np.full((len(images), 2), np.nan)
    for teaching in (0, 1):
        known = np.flatnonzero((sites == home) & (half == teaching)).tolist()
        tested = np.flatnonzero((sites != home) & (half != teaching)).tolist()
        if not (known and tested):
            received = f"{len(known)} images to learn from at {home}, {len(tested)} of others elsewhere"
            raise DataError(received, "one or more of both", "Evaluate more subjects.")
        network = _train([images[i] for i in known], seed, steps)
        for index in tested:
            found[index] = _score(network, images[index])
    return found


def _home_first(people: np.ndarray, at_home: np.ndarray) -> list[str]:
    """Subjects in the order in which they are dealt to the halves, so that both halves have teachers."""
    return [*np.unique(at_home), *np.setdiff1d(people, at_home)]


def _train(images: Sequence[TissueSlices], seed: int, steps: int) -> nn.Module:
    x = torch.from_numpy(np.concatenate([own.image for own in images]).astype(np.float32))
    y = torch.from_numpy(np.concatenate([own.labels for own in images]).astype(np.int64)) - 1
    shown = (y >= 0).flatten(1).any(dim=1)
    x, y = x[shown], y[shown]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network()
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (_BATCH,))
            loss = F.cross_entropy(_logits(network, x[rows]), y[rows], ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _network() -> nn.Module:
    from diffusers import UNet2DModel  # takes seconds

    network: Any = UNet2DModel(  # whose types the checker cannot see
        in_channels=1,
        out_channels=len(TISSUES),
        block_out_channels=_CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        add_attention=False,
    )
    return network


def _logits(network: nn.Module, slices: Tensor) -> Tensor:
    return network(slices[:, None], 0).sample


def _score(network: nn.Module, image: TissueSlices) -> tuple[float, float]:
    with torch.inference_mode():
        likeliest = _logits(network, torch.from_numpy(image.image.astype(np.float32))).argmax(dim=1).numpy() + 1
    found = np.where(image.labels > 0, likeliest, 0)
    return mean_dice(found, image.labels), mean_volume_error(found, image.labels)
