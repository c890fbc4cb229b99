"""Settings of MLflow."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import Named, Place, Text

ModelName = Annotated[
    Text, Field(pattern=r"^[^/:@]{1,200}$", description="a name of at most 200 characters without /, : and @")
]
Alias = Annotated[Text, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$", description="letters, digits, - and _")]


@dataclass(frozen=True, config=SETTINGS)
class TrackingConfig(Section):
    """MLflow."""

    uri: Place | None = None
    """Tracking URI; otherwise MLFLOW_TRACKING_URI, otherwise sqlite:///mlflow.db with artifacts in ./mlruns."""
    experiment: Named = "mmh-ray"
    """Experiment name; `-harmonize` is appended for runs that harmonize archives."""
    model_name: ModelName = "mmh-global"
    """Registered model name."""
    alias: Alias = "champion"
    """Alias set on the new version."""
