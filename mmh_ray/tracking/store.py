"""Chooses the MLflow store and the place of its artifacts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mmh_ray.config import TrackingConfig
from mmh_ray.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///mlflow.db"
ENVIRONMENT = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
_CREDENTIALS = re.compile(r"(?<=://)[^/?@\s]*@")


def configure(tracking: TrackingConfig) -> str:
    """Choose the store for this process and return its URI.

    It is ``tracking.uri``, else ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db`` in the current folder. The
    returned URI of a SQLite file has its absolute path, for other processes with another current folder.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # progress bars would fill a job's log
    import mlflow

    chosen = os.environ.get(ENVIRONMENT)
    uri = choose_uri(tracking)
    mlflow.set_tracking_uri(uri)
    # MLflow writes the URI into the environment, where the next call would take it for the user's choice.
    os.environ.pop(ENVIRONMENT, None)
    if chosen is not None:
        os.environ[ENVIRONMENT] = chosen
    return uri


def mlflow_client() -> MlflowClient:
    """MLflow's client for the store that was chosen last; the import takes seconds."""
    from mlflow import MlflowClient

    return MlflowClient()


def is_configured(tracking: TrackingConfig) -> bool:
    """Whether a setting or the environment names a store, so that it is not the default in the current folder."""
    return bool(tracking.uri or os.environ.get(ENVIRONMENT))


def choose_uri(tracking: TrackingConfig) -> str:
    """The URI that :func:`configure` would choose."""
    uri = tracking.uri or os.environ.get(ENVIRONMENT) or DEFAULT_URI
    database = sqlite_file(uri)
    return f"{_SQLITE}{database}" if database else uri


def without_credentials(text: object) -> str:
    """A text, such as an error of MLflow, without user names and passwords in its URIs."""
    return _CREDENTIALS.sub("", str(text))


def sqlite_file(uri: str) -> Path | None:
    """Absolute path of a SQLite store's file; None for any other store."""
    name = uri.removeprefix(_SQLITE)
    return None if name in {uri, "", ":memory:"} else Path(name).absolute()


def experiment_id(name: str) -> str:
    """Id of an experiment, which is created if it does not exist.

    A SQLite store gets an explicit artifact folder, ``mlruns`` beside its file, as MLflow's default is relative to the
    current folder. Other stores choose their own.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow_client()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        database = sqlite_file(mlflow.get_tracking_uri())
        location = (database.parent / "mlruns").as_uri() if database else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process was faster
    assert experiment is not None
    if experiment.lifecycle_stage != "active":
        remedy = f"Restore it (`mlflow experiments restore -x {experiment.experiment_id}`) or choose another name."
        raise ConfigError(f"tracking.experiment={name!r}, which was deleted", "an experiment that is in use", remedy)
    return experiment.experiment_id
