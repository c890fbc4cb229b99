"""Style vectors of scans as they are: the planes that cross thick slices do not count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mmh_ray.config import StyleConfig
from mmh_ray.distributed.style_encoder import StyleDescriber
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder
from mmh_ray.models.style.vectors import StyleVectors

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("describe", [StyleVectors(StyleConfig(slices=2)), StyleDescriber(StyleConfig(slices=2))])
@pytest.mark.parametrize("spacing", [(3, 3, 6), (3, 3, 3)])
def test_planes_that_cross_thick_slices_do_not_count(
    describe: Callable[..., np.ndarray],
    spacing: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    image, affine = rng.uniform(0.2, 1, (24, 24, 12)).astype(np.float32), np.diag([*spacing, 1.0])
    plain, features = describe(image, image > 0, affine), TriPlanarStyleEncoder.features

    def spoilt(*given: Tensor) -> Tensor:
        found = features(*given)
        found[:, 1:] = torch.randn(found[:, 1:].shape)  # coronal and sagittal
        return found

    monkeypatch.setattr(TriPlanarStyleEncoder, "features", spoilt)
    assert np.array_equal(describe(image, image > 0, affine), plain) == (spacing[2] > spacing[0])
