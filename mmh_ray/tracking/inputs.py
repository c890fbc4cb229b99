"""Logs the input data of a run, which MLflow shows under "Datasets": name, digest and place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from mmh_ray.object_store import loggable_uri
from mmh_ray.tracking.store import mlflow_client

DIGEST_LENGTH = 36
"""MLflow's limit on the length of a digest. The profile of the dataset has the complete digest."""
SIMULATION = "simulation"
"""Name of the data of a model that was trained without scans."""


@dataclass(frozen=True)
class RunInput:
    """Input data of a run.

    Attributes
    ----------
    context:
        Purpose of the data.
    digest:
        Hash of the data, 64 hex digits: over the table of the images, not over the bytes of a folder.
    place:
        Folder or URI, logged without credentials. None if this package simulated the data.
    """

    context: Literal["training", "evaluation", "harmonization"]
    digest: str
    place: str | None

    @property
    def name(self) -> str:
        """Last part of the place."""
        if self.place is None:
            return SIMULATION
        parts = [part for part in loggable_uri(self.place).split("/") if part]
        return parts[-1] if parts else self.context

    @property
    def short_digest(self) -> str:
        """The digest, cut to MLflow's limit."""
        return self.digest[:DIGEST_LENGTH]


def log_input(run_id: str, data: RunInput) -> None:
    """Add data to the inputs of a run; data that are added twice become one input."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    if data.place is None:
        source_type = CodeDatasetSource._get_source_type()
        source = CodeDatasetSource({"mlflow.source.name": "mmh_ray.simulation"}).to_json()
    else:
        place = loggable_uri(data.place)
        source_type = place.partition("://")[0] if "://" in place else "local"
        source = json.dumps({"uri": place})
    profile = json.dumps({"sha256": data.digest})
    dataset = Dataset(data.name, data.short_digest, source_type, source, profile=profile)
    tags = [InputTag(MLFLOW_DATASET_CONTEXT, data.context)]
    mlflow_client().log_inputs(run_id, [DatasetInput(dataset, tags)])
