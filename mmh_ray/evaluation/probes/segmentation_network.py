"""Trains a small U-Net on tissues of one site and tests it at the others, like a user's own segmentation network.

It uses 16 axial slices of 64 × 64 pixels of 4 mm. Needs torch and diffusers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmh_ray.config import GridConfig
from mmh_ray.diffusers_import import import_diffusers
from mmh_ray.errors import DataError
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.segmentation import TISSUES, mean_dice, mean_volume_error
from mmh_ray.imaging.grid import to_grid, working_affine

SPACING_MM = 4.0
SHAPE = (64, 64, 48)
"""Grid of the network along right, anterior and superior: 256 by 256 by 192 mm."""
EVERY = 3
"""Every third axial slice of the grid is used."""
STEPS = 100

_BATCH = 4
_RATE = 3e-3
_CHANNELS = (8, 16, 32)


class TissueSlices(NamedTuple):
    """Axial slices of one image.

    Attributes
    ----------
    image:
        ``(16, 64, 64)`` float16, zero outside the brain.
    labels:
        ``(16, 64, 64)`` int8 tissues: 0 outside, else 1 + the index in
        :data:`mmh_ray.evaluation.metrics.segmentation.TISSUES`.
    """

    image: np.ndarray
    labels: np.ndarray


def tissue_slices(image: np.ndarray, mask: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> TissueSlices:
    """The U-Net's input from an image ``(I, J, K)``, scaled by its own percentiles, and the tissues to predict."""
    grid_config = GridConfig(spacing_mm=SPACING_MM, shape=SHAPE)
    grid = working_affine(affine, mask, grid_config)

    def sliced(values: np.ndarray) -> np.ndarray:
        resampled = to_grid(values, affine, grid, SHAPE)
        return np.moveaxis(resampled[:, :, ::EVERY], 2, 0)

    shares_of_tissues = []
    for label in range(1, len(TISSUES) + 1):
        tissue = (labels == label).astype(np.float32)
        shares_of_tissues.append(sliced(tissue))
    shares = np.stack(shares_of_tissues)
    brain_share = sliced(mask.astype(np.float32))
    inside = brain_share > 0.5
    has_tissue = inside & (shares.max(axis=0) > 0)
    likeliest = shares.argmax(axis=0) + 1
    tissues = np.where(has_tissue, likeliest, 0)
    scaled = scale_by_percentiles(image, mask)
    brain = np.where(mask, scaled, 0)
    slices = np.where(inside, sliced(brain), 0)
    return TissueSlices(slices.astype(np.float16), tissues.astype(np.int8))


def unet_transfer(
    images: Sequence[TissueSlices], site: Sequence[str], subject: Sequence[str], seed: int = 0, steps: int = STEPS
) -> np.ndarray:
    """``(n, 2)`` mean Dice, and mean relative volume error of grey and white matter, tested at all sites but one.

    At the training site, the one with the most images, a U-Net (Ronneberger et al. 2015; ``diffusers.UNet2DModel`` of
    8, 16 and 32 channels) learns tissues from a method's outputs: cross-entropy inside the brain, Adam with a cosine
    schedule to zero, no augmentation. It is trained on half of the subjects and tested on the other half's images from
    other sites; then the halves are swapped. Dice: higher is better; volume error: lower. Images that are not tested
    are NaN. Results depend only on images and seed; the global random state is not changed.

    Cannot see: structures below 4 mm. A segmenter trained with augmentation may tolerate differences that lower these
    scores.

    Raises
    ------
    DataError
        If one half of the subjects has no image at the training site, or the other half none at another site.
    """
    sites = np.asarray(site, str)
    subjects = np.asarray(subject, str)
    home = _most_frequent(sites)
    half_of_subject = _halves(subjects, subjects[sites == home])
    half = np.array([half_of_subject[name] for name in subjects])
    scores = np.full((len(images), 2), np.nan)
    for training_half in (0, 1):
        training = np.flatnonzero((sites == home) & (half == training_half)).tolist()
        tested = np.flatnonzero((sites != home) & (half != training_half)).tolist()
        if not (training and tested):
            received = f"{len(training)} images to train on at {home}, {len(tested)} of other subjects elsewhere"
            raise DataError(received, "at least one of each", "Evaluate more subjects.")
        network = _train([images[i] for i in training], seed, steps)
        for i in tested:
            scores[i] = _score(network, images[i])
    return scores


def _most_frequent(sites: np.ndarray) -> str:
    """The site with the most images; in a tie, the first by name."""
    counts = Counter(sites)
    return min(counts, key=lambda name: (-counts[name], name))


def _halves(subjects: np.ndarray, at_home: np.ndarray) -> dict[str, int]:
    """0 or 1 by subject; subjects seen at home are assigned first, so that both halves can train the network."""
    first = np.unique(at_home)
    others = np.setdiff1d(subjects, at_home)
    return {name: number % 2 for number, name in enumerate([*first, *others])}


def _train(images: Sequence[TissueSlices], seed: int, steps: int) -> nn.Module:
    slices = np.concatenate([image.image for image in images])
    labels = np.concatenate([image.labels for image in images])
    x = torch.from_numpy(slices.astype(np.float32))
    y = torch.from_numpy(labels.astype(np.int64)) - 1
    has_tissue = (y >= 0).flatten(1).any(dim=1)
    x = x[has_tissue]
    y = y[has_tissue]
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
    diffusers = import_diffusers()  # takes seconds
    network: nn.Module = diffusers.UNet2DModel(
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
        slices = torch.from_numpy(image.image.astype(np.float32))
        logits = _logits(network, slices)
    likeliest = logits.argmax(dim=1).numpy() + 1
    predicted = np.where(image.labels > 0, likeliest, 0)
    return mean_dice(predicted, image.labels), mean_volume_error(predicted, image.labels)
