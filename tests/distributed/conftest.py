"""A tiny untrained model, shared by the tests of the batch job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmh_ray.config import Config, GridConfig, HarmonizeConfig, ModelConfig, PrepareConfig
from mmh_ray.models.bundle import save_bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """T1w and T2w on a coarse grid, one plane, no bias field, one actor."""
    return Config(
        grid=GridConfig(6.0, (32, 40, 32)),
        prepare=PrepareConfig(n4=False),
        model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2), patch=2),
        harmonize=HarmonizeConfig(planes=("axial",), slots=1),
    )


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config], Path]:
    """Writes the bundle of an untrained model of some settings."""

    def make(config: Config) -> Path:
        folder = tmp_path_factory.mktemp("model") / "bundle"
        torch.manual_seed(0)
        quantiles = torch.linspace(0, 1, 257).repeat(2, 2, 1)
        model = GlobalHarmonizer(config.model, config.train, quantiles)
        save_bundle(folder, model, config, quantiles=quantiles, data_hash="d" * 64, training={"steps": 0})
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: Callable[[Config], Path], tiny_config: Config) -> Path:
    """Its bundle."""
    return make_bundle(tiny_config)
