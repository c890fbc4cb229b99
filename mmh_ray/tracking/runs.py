"""Starts, continues and ends MLflow runs, and logs their settings, facts, metrics and files."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmh_ray.config import Config, flatten
from mmh_ray.provenance import code_version
from mmh_ray.tracking.outage import retry_while_unreachable
from mmh_ray.tracking.store import experiment_id, mlflow_client, without_credentials

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

PER_REQUEST = 100
"""MLflow's limit on the parameters or tags of one request."""
METRICS_PER_REQUEST = 1000
"""MLflow's limit on the metrics of one request."""
PARAM_LENGTH = 6000
"""MLflow's limit on the length of a parameter."""
TAG_LENGTH = 8000
"""MLflow's limit on the length of a tag."""


@dataclass(frozen=True)
class MetricRow:
    """Metrics of one step."""

    step: int
    time_ms: int
    """Time of measurement, since the epoch. It makes a row that is sent twice one row in MLflow."""
    values: dict[str, float]

    @classmethod
    def of_now(cls, step: int, values: Mapping[str, float]) -> MetricRow:
        """Make a row with the current time."""
        return cls(step, int(time.time() * 1000), {name: float(value) for name, value in values.items()})


def start_run(config: Config, run_name: str, run_id: str | None, facts: Mapping[str, Any]) -> str:
    """Start a run, or continue an earlier one, and return its id.

    Parameters
    ----------
    run_id:
        Id of the run to continue; if the store has lost it, a new run starts, with a warning. None starts a new run.
    facts:
        Logged as tags ``mmh.KEY``, for example ``data_hash``; the code's version is added.

    MLflow's parameters cannot change: if a setting of a continued run differs, it becomes a tag ``resumed.KEY``.
    """
    client = mlflow_client()
    run = _find_run(run_id) if run_id else None
    if run is None:
        run = client.create_run(experiment_id(config.tracking.experiment), run_name=run_name)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
    tags = {"mmh.code_version": code_version()}
    for key, value in facts.items():
        tags[f"mmh.{key}"] = _as_text(value)
    known_settings = run.data.params
    new_settings = {}
    for key, value in flatten(config).items():
        text = shorten(_as_text(value), PARAM_LENGTH)
        if key not in known_settings:
            new_settings[key] = text
        elif text != known_settings[key]:
            tags[f"resumed.{key}"] = text
    _log_settings(run.info.run_id, new_settings, tags)
    return run.info.run_id


def log_metrics(run_id: str, rows: Iterable[MetricRow]) -> None:
    """Send metrics; when this returns, the store has acknowledged them."""
    from mlflow.entities import Metric

    metrics = []
    for row in rows:
        for name, value in row.values.items():
            metrics.append(Metric(name, value, row.time_ms, row.step))
    send_metrics(run_id, metrics)


def send_metrics(run_id: str, metrics: list[Metric]) -> None:
    """Send metrics, in as few requests as MLflow's limits allow."""
    for chunk in _chunks(metrics, METRICS_PER_REQUEST):
        mlflow_client().log_batch(run_id, metrics=chunk)


def log_file(run_id: str, path: str | Path, folder: str | None = None) -> None:
    """Add a file to the run's artifacts."""
    mlflow_client().log_artifact(run_id, str(path), artifact_path=folder)


def finish(run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
    """End the run; waits for a server that does not answer."""
    retry_while_unreachable(lambda: mlflow_client().set_terminated(run_id, status))


def mark_failed(run_id: str) -> None:
    """End the run as failed; only logs a warning if that fails, so as not to hide the error of the run."""
    try:
        mlflow_client().set_terminated(run_id, "FAILED")
    except Exception as error:
        log.warning("MLflow run %s could not be marked as failed: %s", run_id, without_credentials(error))


def shorten(text: str, length: int) -> str:
    """Text of at most ``length`` characters; an ellipsis marks a cut."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _as_text(value: Any) -> str:
    return without_credentials(value if isinstance(value, str) else json.dumps(value, default=str))


def _find_run(run_id: str) -> Run | None:
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        run = mlflow_client().get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None
    if run is None or run.info.lifecycle_stage != "active":
        shown_uri = without_credentials(mlflow.get_tracking_uri())
        log.warning("MLflow run %s is not in %s: a new run starts", run_id, shown_uri)
        return None
    return run


def _log_settings(run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    client = mlflow_client()
    settings = [Param(key, value) for key, value in sorted(params.items())]
    for chunk in _chunks(settings, PER_REQUEST):
        client.log_batch(run_id, params=chunk)
    facts = [RunTag(key, shorten(value, TAG_LENGTH)) for key, value in tags.items()]
    for chunk in _chunks(facts, PER_REQUEST):
        client.log_batch(run_id, tags=chunk)


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
