"""A tiny model and a tiny textured volume, shared by the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mmh_ray.config import ModelConfig, TrainConfig
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.slab_groups import Conditioner, slab_group

SHAPE = (16, 24, 16)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread: on tiny tensors, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    """Two levels of 8 and 16 channels."""
    return ModelConfig(channels=(8, 16), slab=3, distances=(1, 2), patch=2)


@pytest.fixture(scope="session")
def mask() -> np.ndarray:
    """An ellipsoid that leaves a border on every side."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    return sum(axis**2 for axis in axes) < 0.7


@pytest.fixture(scope="session")
def brain(mask: np.ndarray) -> np.ndarray:
    """Random unit intensities inside the mask, zero outside."""
    return (np.random.default_rng(5).uniform(0.1, 1, SHAPE) * mask).astype(np.float32)


@pytest.fixture(scope="session")
def uniform() -> np.ndarray:
    """The unified domain of these tests, as two rows.

    The first is the quantile function of the uniform distribution over (0, 1), the second holds the tissue quantiles.
    """
    return np.stack([np.linspace(0, 1, 257), np.linspace(0.1, 0.9, 257)])


@pytest.fixture
def model(tiny: ModelConfig) -> GlobalHarmonizer:
    """An untrained harmonizer in training mode; both domains start from the uniform distribution over (0, 1)."""
    torch.manual_seed(0)
    return GlobalHarmonizer(tiny, TrainConfig(), torch.linspace(0, 1, 257).repeat(2, 2, 1))


@pytest.fixture
def batch(brain: np.ndarray, mask: np.ndarray, uniform: np.ndarray, tiny: ModelConfig) -> SlabBatch:
    """Two groups of one slab a plane, T1w then T2w."""
    groups = [
        slab_group(
            {"image": brain**power}, Conditioner(brain, mask, uniform, tiny), mask, index, 1, seed=index, twin=index
        )
        for index, power in enumerate((1, 2))
    ]
    fields = {name: torch.from_numpy(np.concatenate([group[name] for group in groups])) for name in groups[0]}
    floats = {name: fields[name].float() for name in ("image", "condition", "mask")}
    return SlabBatch(**{**fields, **floats}, group=torch.tensor([0, 0, 0, 1, 1, 1]))
