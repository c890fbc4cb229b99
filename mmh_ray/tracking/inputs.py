"""What a run worked on, as MLflow shows it under "Datasets": a name, a digest, and where it lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from mmh_ray.object_store import loggable_uri
from mmh_ray.tracking.store import mlflow_client

DIGEST_LENGTH = 36
"""Characters of a digest that MLflow takes. The profile of the dataset holds all of it."""
SIMULATION = "simulation"
"""Name of the data of a model that was trained without any scan."""


@dataclass(frozen=True)
class RunInput:
    """Data that a run worked on.

    Attributes
    ----------
    context:
        What the run did with it.
    digest:
        Hash of what was read, 64 hex digits: over the table of the images, not over the bytes of a folder.
    place:
        Folder or URI; its credentials, if it has any, are not logged. None where the data were made by this package.
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
        """The digest as MLflow takes it."""
        return self.digest[:DIGEST_LENGTH]


def log_input(run_id: str, data: RunInput) -> None:
    """Add data to the inputs of a run. The same data twice are one input."""
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
