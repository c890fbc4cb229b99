"""Stores evaluations with their model version, reads them again, and moves an alias to a version."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmh_ray.config import Config, TrackingConfig
from mmh_ray.errors import ModelError
from mmh_ray.tracking.inputs import RunInput, log_input
from mmh_ray.tracking.outage import retry_while_unreachable
from mmh_ray.tracking.registry import BUNDLE_HASH, download, find_version, open_store, version_uri
from mmh_ray.tracking.runs import finish, log_file, send_metrics, start_run
from mmh_ray.tracking.store import mlflow_client

EVALUATION = "mmh.evaluation"
"""Tag of a model version: the run that holds its latest evaluation."""


def cite(model: str, tracking: TrackingConfig) -> tuple[str, str | None]:
    """``models:/NAME/VERSION`` of a registered model, and the hash of its bundle.

    Raises
    ------
    ModelError
        If the store, name, alias or version does not exist.
    """
    open_store(model, tracking)
    version = find_version(model)
    return version_uri(version), version.tags.get(BUNDLE_HASH)


def record_evaluation(
    model: str,
    files: Sequence[Path],
    metrics: Mapping[str, float],
    data: RunInput,
    config: Config,
    facts: Mapping[str, str],
) -> str:
    """Log an evaluation as a run: metrics of the model, files as artifacts, a tag of the version. Returns the run's id.

    Parameters
    ----------
    data:
        The scans that were evaluated.
    facts:
        Further tags ``mmh.KEY`` of the run.
    """
    from mlflow.entities import Metric

    open_store(model, config.tracking)
    client = mlflow_client()
    retry_while_unreachable(lambda: client.search_experiments(max_results=1))
    version = find_version(model)
    uri = version_uri(version)
    now = int(time.time() * 1000)
    run_id = start_run(config, f"evaluate {version.name}/{version.version}", None, {"model": uri, **facts})
    log_input(run_id, data)
    # a SQLite store has the id of the model only in the source
    logged = version.model_id or (version.source or "").removeprefix("models:/")
    owner = {"model_id": logged, "dataset_name": data.name, "dataset_digest": data.short_digest, "run_id": run_id}
    entries = [Metric(name, value, now, 0, **owner) for name, value in sorted(metrics.items())]
    send_metrics(run_id, entries)
    for path in files:
        log_file(run_id, path, "evaluation")
    finish(run_id)
    client.set_model_version_tag(version.name, version.version, EVALUATION, run_id)
    return run_id


def evaluation_of(model: str, tracking: TrackingConfig) -> tuple[str, Path]:
    """URI of a model version, and a local folder with the files of its latest evaluation.

    Raises
    ------
    ModelError
        If the model is not registered or was not evaluated, or the files cannot be downloaded.
    """
    open_store(model, tracking)
    version = find_version(model)
    uri = version_uri(version)
    run_id = version.tags.get(EVALUATION)
    if run_id is None:
        remedy = f"Run mmh evaluate with --archive ours=OUT, where OUT was made by this model, and --model {uri}."
        raise ModelError(f"{uri}, which was not evaluated", "a model with an evaluation", remedy)
    name = f"the evaluation of {uri} in run {run_id}"
    return uri, download(name, "its files", run_id=run_id, artifact_path="evaluation")


def move_alias(model: str, alias: str) -> None:
    """Move an alias to a registered version, in the configured store."""
    version = find_version(model)
    mlflow_client().set_registered_model_alias(version.name, alias, version.version)
