"""Slice groups: the contract between loader and model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmh_ray.config import ModelConfig
from mmh_ray.imaging.intensity import quantile_function
from mmh_ray.imaging.slices import NORMAL, PLANES, along, crop_slices
from mmh_ray.models.denoiser import Context, Denoiser
from mmh_ray.models.slab_groups import Conditioner, brain_slices, padded_size, slab_group

pytestmark = pytest.mark.fast

UNIFORM = np.stack([np.linspace(0, 1, 257), np.linspace(0.1, 0.9, 257)])


def training_group(
    target: np.ndarray,
    styled: np.ndarray,
    mask: np.ndarray,
    sequence: int,
    slabs: int,
    model: ModelConfig,
    seed: int,
    twin: int,
) -> dict[str, np.ndarray]:
    """A group of a volume, with the condition of a styled copy."""
    conditioner = Conditioner(styled, mask, UNIFORM, model)
    return slab_group({"image": target}, conditioner, mask, sequence, slabs, seed, twin)


def group_of(
    brain: np.ndarray, mask: np.ndarray, model: ModelConfig, slabs: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """A group of the shared volume, styled copy = its square root."""
    return training_group(brain, np.sqrt(brain), mask, 1, slabs, model, seed, seed)


def test_shapes_and_types(brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig) -> None:
    found = {name: (array.shape, array.dtype) for name, array in group_of(brain, mask, tiny).items()}
    assert found == {
        "image": ((6, 3, 16, 24), np.float16),
        "condition": ((6, 9, 16, 24), np.float16),  # 3 components at 2 distances, 3 matched slices
        "mask": ((6, 3, 16, 24), np.uint8),
        "plane": ((6,), np.int64),
        "position": ((6,), np.float32),
        "sequence": ((6,), np.int64),
        "twin": ((6,), np.int64),
        "key": ((6,), np.int64),
    }


def test_twins_show_the_same_slices_with_noise_of_their_own(
    brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig
) -> None:
    one, twin, other = (
        training_group(brain, np.sqrt(brain), mask, 1, 2, tiny, seed, number)
        for seed, number in ((0, 7), (1, 7), (0, 8))
    )
    np.testing.assert_array_equal(one["position"], twin["position"])
    assert not np.array_equal(one["position"], other["position"])
    assert not set(one["key"].tolist()) & set(twin["key"].tolist())


def test_labels(brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig) -> None:
    group = group_of(brain, mask, tiny)
    assert group["plane"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (group["sequence"] == 1).all()
    assert len(set(group["key"].tolist())) == 6
    assert group["key"].min() >= 0


def test_image_mask_and_condition_show_the_slice_at_the_position(
    brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig
) -> None:
    group = group_of(brain, mask, tiny, slabs=3)
    conditioner = Conditioner(np.sqrt(brain), mask, UNIFORM, tiny)
    for row, number in enumerate(group["plane"]):
        plane = PLANES[number]
        index = round(float(group["position"][row]) * (mask.shape[NORMAL[plane]] - 1))
        size = along(brain, plane).shape[1:]
        np.testing.assert_allclose(crop_slices(group["image"][row, 1], *size), along(brain, plane)[index], atol=1e-3)
        np.testing.assert_array_equal(crop_slices(group["mask"][row, 1], *size), along(mask, plane)[index])
        np.testing.assert_allclose(group["condition"][row], conditioner.slabs(plane, [index])[0], atol=1e-3)


@pytest.mark.parametrize("slabs", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_slabs_are_stratified_over_the_brain(
    brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig, slabs: int, seed: int
) -> None:
    group = group_of(brain, mask, tiny, slabs, seed)
    for number, plane in enumerate(PLANES):
        slices = brain_slices(mask, plane)
        indices = np.rint(group["position"][group["plane"] == number] * (mask.shape[NORMAL[plane]] - 1))
        assert np.isin(indices, slices).all()
        strata = ((indices - slices[0]) / len(slices) * slabs + 1e-6).astype(int)  # one slab in each equal part
        assert np.abs(strata - np.arange(slabs)).max() <= (len(slices) % slabs > 0)


def test_every_brain_slice_is_drawn_at_some_time(brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig) -> None:
    drawn = [group_of(brain, mask, tiny, 4, seed)["position"][:4] for seed in range(40)]
    seen = np.unique(np.rint(np.concatenate(drawn) * (mask.shape[2] - 1)))
    np.testing.assert_array_equal(seen, brain_slices(mask, "axial"))


def test_same_seed_same_group_another_seed_another(brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig) -> None:
    first, again, other = (group_of(brain, mask, tiny, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["key"], other["key"])
    assert not np.array_equal(first["position"], other["position"])


def test_one_slice_of_brain_is_enough(brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig) -> None:
    thin = np.zeros_like(mask)
    thin[:, :, 8] = mask[:, :, 8]
    group = training_group(brain * thin, brain * thin, thin, 0, 3, tiny, 0, 0)
    np.testing.assert_allclose(group["position"][:3], 8 / 15)


@pytest.mark.parametrize("plane", PLANES)
def test_brain_slices_are_those_with_brain(mask: np.ndarray, plane: str) -> None:
    slices = brain_slices(mask, plane)
    held = along(mask, plane).reshape(mask.shape[NORMAL[plane]], -1).sum(1)
    assert held[slices].min() > 0
    assert held[slices].sum() == mask.sum()


def test_no_brain_has_no_slices() -> None:
    assert len(brain_slices(np.zeros((4, 5, 6), bool), "axial")) == 0


@pytest.mark.parametrize(
    ("shape", "patch", "levels", "size"),
    [
        ((16, 24, 16), 2, 2, (16, 24)),
        ((17, 9, 5), 2, 2, (20, 12)),
        ((17, 9, 5), 1, 1, (17, 9)),
        ((17, 9, 5), 4, 3, (32, 16)),
        ((56, 72, 56), 2, 3, (56, 72)),
    ],
)
def test_slabs_hold_the_volume_and_can_be_halved(
    shape: tuple[int, int, int], patch: int, levels: int, size: tuple[int, int]
) -> None:
    assert padded_size(shape, ModelConfig(channels=(8,) * levels, patch=patch)) == size


@pytest.mark.parametrize("model", [ModelConfig(channels=(8, 16, 16, 16)), ModelConfig(channels=(8, 16), patch=4)])
def test_denoiser_takes_what_the_conditioner_gives(brain: np.ndarray, mask: np.ndarray, model: ModelConfig) -> None:
    group = group_of(brain, mask, model)
    images, condition = (torch.from_numpy(group[name]).float() for name in ("image", "condition"))
    one = torch.ones(6, dtype=torch.long)
    with torch.inference_mode():
        predicted = Denoiser(model)(images, one, condition, Context(one, one, one / 2, torch.ones(6, 2)))
    assert predicted.shape == images.shape


def test_condition_does_not_depend_on_the_unit(brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig) -> None:
    small, large = (Conditioner(gain * brain, mask, UNIFORM, tiny).slabs("coronal", [12]) for gain in (1, 900))
    np.testing.assert_allclose(large, small, atol=1e-4)


def piecewise(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A random increasing curve through eight knots, slopes from 0.3 to 3."""
    rng = np.random.default_rng(seed)
    knots = np.linspace(0, 1, 8)
    values = rng.uniform(-50, 50) + np.concatenate([[0], np.cumsum(np.exp(rng.uniform(-1.2, 1.1, 7)))])
    return lambda data: np.interp(data, knots, values)


CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"gamma {gamma}": (lambda data, gamma=gamma: data**gamma) for gamma in (0.4, 0.7, 1.6, 2.5)},
    **{f"piecewise {seed}": piecewise(seed) for seed in range(4)},
    "scanner units": lambda data: 1700 * data + 40,
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
def test_condition_is_the_same_under_any_increasing_curve(
    brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig, curve: Callable[[np.ndarray], np.ndarray]
) -> None:
    """The remaining difference is the curve's bend between two of the 257 quantiles."""
    styled = (curve(brain) * mask).astype(np.float32)
    assert np.abs(quantile_function(styled[mask]) - quantile_function(brain[mask])).max() > 0.02
    for plane, slices in (("axial", [4, 8]), ("coronal", [12]), ("sagittal", [7])):
        found, expected = (Conditioner(data, mask, UNIFORM, tiny).slabs(plane, slices) for data in (styled, brain))
        np.testing.assert_allclose(found, expected, atol=0.004)
        assert np.abs(expected).max() > 0.2


def test_condition_of_a_decreasing_curve_is_another(brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig) -> None:
    """Contrast itself, T1w against T2w, is not lost."""
    inverted = ((1 - brain) * mask).astype(np.float32)
    found, expected = (Conditioner(data, mask, UNIFORM, tiny).slabs("axial", [8]) for data in (inverted, brain))
    assert np.abs(found - expected).max() > 0.2


def test_curves_of_a_styled_copy_leave_the_training_group_alone(
    brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig
) -> None:
    groups = [training_group(brain, brain**gamma, mask, 1, 2, tiny, 0, 0) for gamma in (0.5, 1, 2)]
    for group in groups[1:]:
        assert np.array_equal(group["image"], groups[0]["image"])
        np.testing.assert_allclose(group["condition"], groups[0]["condition"], atol=0.005)  # float16


@pytest.mark.parametrize("low", [0.0, 0.2])
def test_condition_does_not_depend_on_what_lies_outside_the_mask(
    brain: np.ndarray, mask: np.ndarray, tiny: ModelConfig, low: float
) -> None:
    quantiles = low + (1 - low) * UNIFORM
    loud = np.where(mask, brain, 5).astype(np.float32)
    found, expected = (Conditioner(data, mask, quantiles, tiny).slabs("axial", [8]) for data in (loud, brain))
    np.testing.assert_array_equal(found, expected)
