"""The style encoder: what may change a style vector, where gradients reach, which encoder is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmh_ray.config import StyleConfig
from mmh_ray.errors import DataError, ModelError
from mmh_ray.imaging.slices import PLANES, along
from mmh_ray.models.style.embedded import EmbeddedBackbone
from mmh_ray.models.style.encoder import (
    StyleAggregator,
    TriPlanarStyleEncoder,
    check_same_encoder,
    make_style_encoder,
    sinusoids,
)

pytestmark = pytest.mark.fast

CONFIG = StyleConfig(slices=3)
DIMENSIONS = 16


@pytest.fixture
def encoder() -> TriPlanarStyleEncoder:
    """An untrained encoder whose parameters all learn."""
    torch.manual_seed(1)
    return TriPlanarStyleEncoder(EmbeddedBackbone(DIMENSIONS, width=4), CONFIG, 3.0)


@pytest.fixture
def volumes(mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """Three noise volumes and masks, the brains of different sizes."""
    masks = torch.from_numpy(np.stack([mask, np.roll(mask, 1, 0) & mask, np.roll(mask, 2, 1) & mask]))
    return torch.rand(masks.shape, generator=torch.Generator().manual_seed(3)) * masks, masks


def test_gradient_reaches_every_voxel_seen_and_every_parameter(encoder, volumes) -> None:
    volume, masks = volumes[0].clone().requires_grad_(), volumes[1]
    encoder(volume, masks).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())
    assert all(gradient[inside].any() for gradient, inside in zip(volume.grad, masks, strict=True))
    assert not volume.grad[~masks].any()


def test_gradient_is_that_of_finite_differences(encoder, volumes) -> None:
    encoder, (volume, masks) = encoder.double(), (volumes[0][:1].double(), volumes[1][:1])
    direction = torch.randn(volume.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * masks
    volume.requires_grad_()
    (gradient,) = torch.autograd.grad(encoder(volume, masks).sum(), volume)
    step = 1e-6
    with torch.no_grad():
        difference = (encoder(volume + step * direction, masks) - encoder(volume - step * direction, masks)).sum() / (
            2 * step
        )
    assert torch.isclose((gradient * direction).sum(), difference, rtol=1e-4)


@torch.no_grad()
def test_batch_of_one_is_a_row_of_a_batch(encoder, volumes) -> None:
    together = encoder(*volumes)
    alone = torch.cat([encoder(volume[None], mask[None]) for volume, mask in zip(*volumes, strict=True)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)
    assert together.shape == (3, DIMENSIONS)


@torch.no_grad()
def test_outside_of_the_brain_does_not_count(encoder, volumes) -> None:
    volume, masks = volumes
    assert torch.equal(encoder(volume + 7 * ~masks, masks), encoder(volume, masks))


@torch.no_grad()
def test_place_of_the_head_in_the_grid_does_not_count(encoder, volumes) -> None:
    volume, masks = volumes[0][:1], volumes[1][:1]
    padded, padded_masks = (F.pad(tensor, (16, 24, 20, 20, 24, 16)) for tensor in (volume, masks))
    wide, wide_masks = (F.pad(tensor, (20, 20, 24, 16, 16, 24)) for tensor in (volume, masks))
    torch.testing.assert_close(encoder(padded, padded_masks), encoder(wide, wide_masks), rtol=1e-4, atol=1e-5)


def test_planes_left_out_have_no_influence(encoder, volumes) -> None:
    planes = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    features = encoder.features(*volumes).detach().requires_grad_()
    encoder.aggregator(features, planes).square().sum().backward()
    assert not features.grad[~planes].any()
    assert all(gradient.any() for gradient in features.grad[planes])
    spoilt = torch.where(planes[..., None, None], features.detach(), 1e3)
    with torch.no_grad():
        assert torch.equal(encoder.aggregator(spoilt, planes), encoder.aggregator(features, planes))


@torch.no_grad()
def test_all_planes_is_the_default(encoder, volumes) -> None:
    assert torch.equal(encoder(*volumes), encoder(*volumes, torch.ones(3, 3, dtype=torch.bool)))


@torch.no_grad()
def test_fusion_starts_as_the_mean_of_the_planes() -> None:
    features = torch.randn(2, 3, 5, 8)
    plain, fused = StyleAggregator(8, alpha=0.0), StyleAggregator(8, alpha=0.2)
    fused.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused(features), 1.2 * plain(features), rtol=1e-5, atol=1e-6)


WAYS = pytest.mark.parametrize("way", ["forward", "of_slices"])


def given(way: str, volumes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Images and masks for a method: volumes, or the same slices of them for every plane."""
    if way == "forward":
        return volumes
    images, masks = (part[:, None].expand(-1, 3, -1, -1, -1) for part in volumes)
    return images, masks


@WAYS
def test_checkpointing_changes_no_gradient(encoder, volumes, way: str) -> None:
    images, masks = given(way, volumes)
    found = []
    for recompute in (False, True):
        encoder.config = replace(CONFIG, checkpoint=recompute)
        encoder.zero_grad()
        seen = images.clone().requires_grad_()
        getattr(encoder, way)(seen, masks).square().sum().backward()
        found.append([seen.grad, *(parameter.grad.clone() for parameter in encoder.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@WAYS
def test_checkpointing_keeps_fewer_activations(encoder, volumes, way: str) -> None:
    images, masks = given(way, volumes)
    kept = []
    for recompute in (False, True):
        encoder.config, sizes = replace(CONFIG, checkpoint=recompute), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            getattr(encoder, way)(images.clone().requires_grad_(), masks)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@torch.no_grad()
def test_chosen_slices_have_the_style_of_their_volume(encoder) -> None:
    volume = torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(5))
    numbers = ((0.1 + 0.8 * (np.arange(3) + 0.5) / 3) * 24).astype(int)
    slices = torch.from_numpy(np.stack([along(volume.numpy(), plane)[numbers] for plane in PLANES]))[None]
    whole = encoder(volume[None], torch.ones(1, 24, 24, 24))
    torch.testing.assert_close(encoder.of_slices(slices, torch.ones(slices.shape)), whole)


@torch.no_grad()
@pytest.mark.parametrize("spacing", [1.0, 1.5])
def test_finer_grid_gives_the_same_style(encoder, volumes, spacing: float) -> None:
    volume, masks = volumes
    factor = int(3 / spacing)
    fine, fine_masks = (
        t.repeat_interleave(factor, 1).repeat_interleave(factor, 2).repeat_interleave(factor, 3) for t in volumes
    )
    finer = TriPlanarStyleEncoder(encoder.backbone, CONFIG, spacing)
    finer.aggregator.load_state_dict(encoder.aggregator.state_dict())
    torch.testing.assert_close(finer(fine, fine_masks), encoder(volume, masks), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_coarser_grid_is_interpolated(encoder, volumes) -> None:
    coarse = TriPlanarStyleEncoder(encoder.backbone, CONFIG, 4.0)
    seen: list[tuple[int, ...]] = []
    coarse.backbone.register_forward_pre_hook(lambda _, inputs: seen.extend(tuple(tensor.shape) for tensor in inputs))
    assert coarse(*volumes).isfinite().all()
    assert seen.count((9, 1, 32, 21)) == 2  # images and masks of one of the planes


@pytest.mark.parametrize("count", [1, 3, 40])
@torch.no_grad()
def test_any_number_of_slices_even_beyond_the_brain(encoder, volumes, count: int) -> None:
    encoder.config = replace(CONFIG, slices=count)
    assert encoder.features(*volumes).shape == (3, 3, count, DIMENSIONS)
    assert encoder(*volumes).isfinite().all()


def test_empty_mask_is_refused_by_number(encoder, volumes) -> None:
    masks = volumes[1].clone()
    masks[1] = False
    with pytest.raises(DataError, match=r"empty masks of volumes \[1\]; expected brain voxels"):
        encoder(volumes[0], masks)


def test_shapes_that_do_not_fit_are_refused(encoder, volumes) -> None:
    with pytest.raises(DataError, match=r"volumes \(16, 24, 16\) with masks \(3, 16, 24, 16\)"):
        encoder(volumes[0][0], volumes[1])


def test_volume_without_planes_is_refused(encoder, volumes) -> None:
    planes = torch.ones(3, 3, dtype=torch.bool)
    planes[2] = False
    with pytest.raises(DataError, match=r"no plane for volumes \[2\]"):
        encoder(*volumes, planes)


def test_frozen_backbone_stays_in_evaluation_mode() -> None:
    encoder = make_style_encoder(CONFIG, 3.0).train()
    assert encoder.aggregator.training
    assert not encoder.backbone.training
    assert not any(parameter.requires_grad for parameter in encoder.backbone.parameters())
    assert all(parameter.requires_grad for parameter in encoder.aggregator.parameters())


def test_positions_differ_and_have_unit_length() -> None:
    found = sinusoids(torch.linspace(0, 1, 12), 96)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(12))
    assert (found @ found.T - torch.eye(12)).max() < 0.999


def test_the_same_encoder_is_taken_and_its_name_does_not_matter() -> None:
    recorded = make_style_encoder(CONFIG, 3.0).describe()
    check_same_encoder(recorded, make_style_encoder(CONFIG, 1.0).describe() | {"backbone": "a copy elsewhere"})


def test_another_encoder_is_refused_with_what_differs() -> None:
    encoder = make_style_encoder(CONFIG, 3.0)
    recorded = encoder.describe()
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(1e-3)
    with pytest.raises(
        ModelError, match=r"backbone_sha256 .* for .*the one that the model was made with, 'embedded'"
    ) as caught:
        check_same_encoder(recorded, encoder.describe())
    assert "aggregator_sha256" not in str(caught.value)
    with pytest.raises(ModelError, match="slices 5 for 3"):
        check_same_encoder(recorded, recorded | {"slices": 5})
