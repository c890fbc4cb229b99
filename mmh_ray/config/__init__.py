"""Defines the typed configuration: frozen dataclasses, YAML files and dotted overrides; unknown keys are refused.

:class:`Config` has a section per command, so that one YAML file can configure all commands::

    config = load_config("configs/demo.yaml", ["train.steps=10", "grid.spacing_mm=2"])

Each module here has one section or several related ones.
"""

from mmh_ray.config.config import Config
from mmh_ray.config.evaluate import EvaluateConfig, PromoteConfig
from mmh_ray.config.harmonize import HarmonizeConfig
from mmh_ray.config.load import load_config
from mmh_ray.config.model import ModelConfig, RestyleConfig
from mmh_ray.config.phantom import PhantomConfig, SimulationConfig
from mmh_ray.config.plain import flatten, from_dict, to_dict
from mmh_ray.config.prepare import GridConfig, ManifestConfig, PrepareConfig
from mmh_ray.config.quality import QualityConfig
from mmh_ray.config.style import StyleConfig
from mmh_ray.config.target import TargetConfig
from mmh_ray.config.tracking import TrackingConfig
from mmh_ray.config.train import TrainConfig

__all__ = [
    "Config",
    "EvaluateConfig",
    "GridConfig",
    "HarmonizeConfig",
    "ManifestConfig",
    "ModelConfig",
    "PhantomConfig",
    "PrepareConfig",
    "PromoteConfig",
    "QualityConfig",
    "RestyleConfig",
    "SimulationConfig",
    "StyleConfig",
    "TargetConfig",
    "TrackingConfig",
    "TrainConfig",
    "flatten",
    "from_dict",
    "load_config",
    "to_dict",
]
