"""A small 3-D network that finds the brain in a head of any contrast.

It is trained on simulated heads only (`mmh_ray.simulation.train_brain`). Their contrasts are drawn at random, so it
does not depend on sequence or scanner (Billot et al., SynthSeg, MedIA 2023; Hoopes et al., SynthStrip, NeuroImage
2022). As in SynthStrip, it predicts the distance to the brain's surface, so the surface can lie between voxels.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from nibabel.spaces import vox2out_vox
from scipy import ndimage
from torch import Tensor, nn

from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.head import largest
from mmh_ray.imaging.volume import Volume
from mmh_ray.shipped_weights import read_weights
from mmh_ray.threads import one_thread

WEIGHTS = Path(__file__).with_name("weights") / "brain.safetensors"
"""The weights that are shipped with the package."""
CHANNELS = (24, 40, 56, 56)
SPACING_MM = 3.0
"""Voxel edge of the network's input."""
PATCH = 2
"""Edge, in input voxels, of the cube that becomes one voxel of the first layer.

The distance is smooth, so little is lost, and convolutions at 3 mm would take most of the time.
"""
MULTIPLE = PATCH * 2 ** (len(CHANNELS) - 1)
"""The length of every input axis must be a multiple of this."""
REACH_MM = 9.0
"""Largest distance that is distinguished; longer ones count as this."""
_BRIGHT_PERCENTILE = 98
_DEEP_MM = 4.0
"""Depth at which the brain is one piece, separate from anything that is joined to it by a thin bridge."""
_RIM_MM = 10.0
"""How far the thinnest lobes of a brain extend beyond its deep part."""


class BrainExtractor(nn.Module):
    """A U-Net of 3-D convolutions: scaled head to distance from the brain's surface in mm, positive inside.

    Input and output are ``(B, 1, X, Y, Z)``; X, Y and Z must be multiples of :data:`MULTIPLE`.
    """

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        before = PATCH**3
        for width in channels:
            self.down.append(_block(before, width))
            before = width
        self.up = nn.ModuleList()
        for width in reversed(channels[:-1]):
            self.up.append(_block(before + width, width))
            before = width
        self.last = nn.Conv3d(before, PATCH**3, 1)

    def forward(self, head: Tensor) -> Tensor:
        """Distance in mm, at most :data:`REACH_MM` either way."""
        skipped = []
        features = _to_patches(head)
        for block in self.down[:-1]:
            features = block(features)
            skipped.append(features)
            features = nn.functional.max_pool3d(features, 2)
        features = self.down[-1](features)
        for block in self.up:
            features = nn.functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = block(torch.cat([features, skipped.pop()], dim=1))
        return REACH_MM * torch.tanh(_from_patches(self.last(features)))


def _to_patches(image: Tensor) -> Tensor:
    """``(B, 1, PX, PY, PZ)`` to ``(B, P³, X, Y, Z)``."""
    batch = len(image)
    x, y, z = (length // PATCH for length in image.shape[2:])
    cubes = image.reshape(batch, x, PATCH, y, PATCH, z, PATCH)
    places_first = cubes.permute(0, 2, 4, 6, 1, 3, 5)
    return places_first.reshape(batch, PATCH**3, x, y, z)


def _from_patches(features: Tensor) -> Tensor:
    """The inverse of :func:`_to_patches`."""
    batch, _, x, y, z = features.shape
    places_first = features.reshape(batch, PATCH, PATCH, PATCH, x, y, z)
    cubes = places_first.permute(0, 4, 1, 5, 2, 6, 3)
    return cubes.reshape(batch, 1, PATCH * x, PATCH * y, PATCH * z)


def _block(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.SiLU(),
        nn.Conv3d(width, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.SiLU(),
    )


def scaled_head(image: np.ndarray) -> np.ndarray:
    """Divide a head ``(X, Y, Z)`` by the level of its bright tissue: float32, 0 to 2."""
    bright = image[image > image.mean()]
    level = float(np.percentile(bright, _BRIGHT_PERCENTILE)) if bright.size else 1.0
    return np.clip(image / max(level, 1e-6), 0, 2).astype(np.float32)


def brain_distance(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Run the network on a scan with its skull.

    Parameters
    ----------
    volume:
        The scan; air is 0 and no value is negative.

    Returns
    -------
    ``(X, Y, Z)`` float32 distance from the brain's surface in mm, positive inside, at most :data:`REACH_MM` either way;
    ``(4, 4)`` affine of its grid: voxels of :data:`SPACING_MM` along the world axes over the whole field of view.
    """
    affine, shape = _grid_over(volume)
    head = scaled_head(to_grid(volume.data, volume.affine, affine, shape))
    with one_thread(), torch.inference_mode():
        seen = torch.from_numpy(head)[None, None]
        distance_mm = _shipped_network()(seen)[0, 0].numpy()
    return _of_one_brain(distance_mm), affine


def _of_one_brain(distance_mm: np.ndarray) -> np.ndarray:
    """Keep the distance ``(X, Y, Z)`` only near the largest deep part, so that a bridge through the skull is cut."""
    deep = largest(distance_mm > _DEEP_MM)
    if not deep.any():
        return distance_mm
    beyond_deep_mm = ndimage.distance_transform_edt(~deep) * SPACING_MM
    is_near = beyond_deep_mm < _RIM_MM
    return np.where(is_near, distance_mm, -REACH_MM)


def _grid_over(volume: Volume) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape of a grid with world axes over the whole field of view; its axes are multiples of `MULTIPLE`."""
    smallest_shape, affine = vox2out_vox((volume.data.shape, volume.affine), (SPACING_MM,) * 3)
    multiples = np.ceil(np.array(smallest_shape) / MULTIPLE).astype(int)
    return affine, tuple((MULTIPLE * multiples).tolist())


def load_brain_extractor(weights: Path = WEIGHTS) -> BrainExtractor:
    """Load the network; raises the errors of :func:`~mmh_ray.shipped_weights.read_weights`."""
    network = BrainExtractor().eval()
    network.load_state_dict(safetensors.torch.load(read_weights(weights)))
    return network


_shipped_network = functools.cache(load_brain_extractor)
