"""Combines all sections into the configuration of a run."""

from __future__ import annotations

from dataclasses import field

from pydantic.dataclasses import dataclass

from mmh_ray.config.evaluate import EvaluateConfig, PromoteConfig
from mmh_ray.config.harmonize import HarmonizeConfig
from mmh_ray.config.model import ModelConfig, RestyleConfig
from mmh_ray.config.phantom import PhantomConfig, SimulationConfig
from mmh_ray.config.prepare import GridConfig, ManifestConfig, PrepareConfig
from mmh_ray.config.quality import QualityConfig
from mmh_ray.config.refusals import require
from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.style import StyleConfig
from mmh_ray.config.target import TargetConfig
from mmh_ray.config.tracking import TrackingConfig
from mmh_ray.config.train import TrainConfig


@dataclass(frozen=True, config=SETTINGS)
class Config(Section):
    """All settings of a run, with a section per command."""

    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    manifest: ManifestConfig = field(default_factory=ManifestConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    restyle: RestyleConfig = field(default_factory=RestyleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    style: StyleConfig = field(default_factory=StyleConfig)
    harmonize: HarmonizeConfig = field(default_factory=HarmonizeConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    promote: PromoteConfig = field(default_factory=PromoteConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        fits = self.harmonize.space == "native" or self.prepare.register
        require(fits, "prepare.register", self.prepare.register, "true with harmonize.space=template")
