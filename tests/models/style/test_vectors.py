"""Style vectors of unprepared scans: planes that cross thick slices do not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmh_ray.config import StyleConfig
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder
from mmh_ray.models.style.vectors import StyleVectors

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("spacing", [(3, 3, 6), (3, 3, 3)])
def test_planes_that_cross_thick_slices_do_not_count(
    spacing: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    describe = StyleVectors(StyleConfig(slices=2))
    image, affine = rng.uniform(0.2, 1, (24, 24, 12)).astype(np.float32), np.diag([*spacing, 1.0])
    plain, features = describe(image, image > 0, affine), TriPlanarStyleEncoder.features

    def spoilt(*given: Tensor) -> Tensor:
        found = features(*given)
        found[:, 1:] = torch.randn(found[:, 1:].shape)  # coronal and sagittal
        return found

    monkeypatch.setattr(TriPlanarStyleEncoder, "features", spoilt)
    assert np.array_equal(describe(image, image > 0, affine), plain) == (spacing[2] > spacing[0])


def test_a_scan_with_non_cubic_voxels_is_resampled_to_cubes(anatomy, clean: np.ndarray) -> None:
    describe = StyleVectors(StyleConfig())
    thin, mask = (np.repeat(data, 2, axis=2) for data in (clean, anatomy.brain))
    fine, fine_mask = (data.repeat(2, axis=0).repeat(2, axis=1) for data in (thin, mask))
    on_cubes = describe(fine, fine_mask, anatomy.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    found = describe(thin, mask, anatomy.affine @ np.diag([1, 1, 0.5, 1]))
    taken_for_cubes = describe(thin, mask, anatomy.affine)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    assert found @ on_cubes > 0.9 > taken_for_cubes @ on_cubes


def test_gain_and_axes_are_no_style(anatomy, clean: np.ndarray) -> None:
    describe = StyleVectors(StyleConfig(slices=2))
    turned = anatomy.affine @ np.array([[-1.0, 0, 0, clean.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    plain = describe(clean, anatomy.brain, anatomy.affine)
    found = describe(500 * clean[::-1], anatomy.brain[::-1], turned)
    np.testing.assert_allclose(found, plain, atol=1e-4)
