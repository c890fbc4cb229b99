"""Style vectors of unprepared scans: a picklable function for the evaluation, which does not import `models`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmh_ray.config import GridConfig, StyleConfig
from mmh_ray.errors import ModelError
from mmh_ray.imaging.grid import to_grid, working_affine
from mmh_ray.imaging.intensity import robust_scaling
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder, make_style_encoder

CUBES = GridConfig(spacing_mm=3.0, shape=(80, 80, 64))
"""Grid for scans with non-cubic voxels; its spacing is the pixel size of the embedded backbone."""
_SAME_EDGES = 0.01


@dataclass
class StyleVectors:
    """Computes style vectors of images on any grid; each image is scaled to unit intensity by itself.

    Each process makes one encoder for each voxel size.

    Attributes
    ----------
    config, aggregator:
        Arguments of :func:`mmh_ray.models.style.encoder.make_style_encoder`.
    """

    config: StyleConfig
    aggregator: Mapping[str, Tensor] = field(default_factory=dict)
    _encoders: dict[float, TriPlanarStyleEncoder] = field(default_factory=dict)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Style vector ``(D,)`` float32 of unit length, for an image ``(I, J, K)`` in any units.

        A scan with cubic voxels is used on its own grid; any other is resampled to :data:`CUBES`.

        Raises
        ------
        DataError
            If the image has no contrast inside the mask.
        """
        unit = robust_scaling(image, mask).apply(image) * mask
        edges = nib.affines.voxel_sizes(affine)
        if np.ptp(edges) > _SAME_EDGES * edges.mean():
            grid = working_affine(affine, mask, CUBES)
            volume = to_grid(unit, affine, grid, CUBES.shape)
            inside = to_grid(mask, affine, grid, CUBES.shape) > 0.5
            spacing_mm = CUBES.spacing_mm
        else:
            to_ras = nib.orientations.io_orientation(affine)
            volume = nib.orientations.apply_orientation(unit, to_ras)
            inside = nib.orientations.apply_orientation(mask, to_ras)
            spacing_mm = round(float(np.cbrt(abs(np.linalg.det(affine[:3, :3])))), 2)
        encoder = self._encoder(spacing_mm)
        batch = torch.from_numpy(np.ascontiguousarray(volume)[None])
        masks = torch.from_numpy(np.ascontiguousarray(inside)[None])
        vectors = encoder(batch, masks, encoder.planes_of(affine))
        return F.normalize(vectors, dim=1)[0].numpy()

    @torch.inference_mode()  # PyTorch rounds differently with weights that were made in another mode
    def check(self) -> None:
        """Raise ModelError if the backbone cannot be loaded."""
        self._encoder(CUBES.spacing_mm)

    def _encoder(self, spacing_mm: float) -> TriPlanarStyleEncoder:
        if spacing_mm not in self._encoders:
            self._encoders[spacing_mm] = make_style_encoder(self.config, spacing_mm, self.aggregator)
        return self._encoders[spacing_mm]

    def __getstate__(self) -> dict[str, Any]:  # workers load the weights themselves
        return vars(self) | {"_encoders": {}}


def style_vectors(config: StyleConfig, notes: list[str]) -> StyleVectors | None:
    """The function for the configured backbone; None, with a note, if its weights cannot be loaded."""
    describe = StyleVectors(config)
    try:
        describe.check()
    except ModelError as error:
        notes.append(f"no style vectors: {error}")
        return None
    return describe
