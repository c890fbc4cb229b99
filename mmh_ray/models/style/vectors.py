"""Style vectors of images for the evaluation, which knows no models: the configured encoder as a function that travels to the workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmh_ray.config import GridConfig, StyleConfig
from mmh_ray.errors import ModelError
from mmh_ray.imaging.grid import to_grid, working_affine
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder, make_style_encoder

GRID = GridConfig(spacing_mm=3.0, shape=(80, 80, 64))
"""Grid on which style is looked at."""


@dataclass(frozen=True)
class StyleVectors:
    """Style vector ``(D,)`` float32 of an image ``(I, J, K)`` scaled by its percentiles, its brain and its affine."""

    config: StyleConfig

    def __call__(self, scaled: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Put it on :data:`GRID` and encode it."""
        import torch

        grid = working_affine(affine, mask, GRID)
        image = to_grid(np.where(mask, scaled, 0), affine, grid, GRID.shape)
        inside = to_grid(mask, affine, grid, GRID.shape) > 0.5
        volume = torch.from_numpy(np.ascontiguousarray(image, np.float32))
        with torch.inference_mode():
            encoder = _encoder(self.config)  # made in this mode: with other weights PyTorch rounds differently
            vectors = encoder(volume[None], torch.from_numpy(inside)[None], encoder.planes_of(affine))
        return vectors[0].numpy()


def style_vectors(config: StyleConfig, notes: list[str]) -> StyleVectors | None:
    """The function for the configured backbone; None, and a note, where its weights cannot be had."""
    try:
        _encoder(config)
    except ModelError as error:
        notes.append(f"no style vectors: {error}")
        return None
    return StyleVectors(config)


@lru_cache(maxsize=1)
def _encoder(config: StyleConfig) -> TriPlanarStyleEncoder:
    return make_style_encoder(config, GRID.spacing_mm).eval()
