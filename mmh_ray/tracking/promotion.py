"""Logs evaluations with the model that made the images, and promotes a model if its evaluation is better."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mmh_ray.bids.derivatives import read_sidecar
from mmh_ray.bids.ledger import current_rows
from mmh_ray.bids.rows import MADE
from mmh_ray.config import Config
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.metrics.registry import OURS, RAW
from mmh_ray.evaluation.promotion.rules import Decision, Evaluated, decide
from mmh_ray.evaluation.report.files import EVALUATION, PER_IMAGE, REPORT, TABLE_COLUMNS
from mmh_ray.files import read_object
from mmh_ray.models.shipped import BASE_MODEL
from mmh_ray.tracking import RunInput, cite, evaluation_of, move_alias, record_evaluation, register_shipped


def check_model(model: str, archives: Mapping[str, str], config: Config) -> str:
    """Check by the ledger of `ours` that a model made every image there; returns ``models:/NAME/VERSION``.

    Raises
    ------
    ConfigError
        If there is no archive `ours`, or another model made some of its images.
    ModelError
        If the model is not registered.
    """
    if model == BASE_MODEL:
        model = register_shipped(config)
    uri, bundle = cite(model, config.tracking)
    if OURS not in archives:
        raise ConfigError(f"--model {model} without --archive ours=OUT", "the images it made", "Add the archive.")
    out = archives[OURS]
    model_hashes = set()
    for ledger_row in current_rows(out):
        if ledger_row["output"] or ledger_row["status"] in MADE:
            model_hashes.add(_model_hash(out, ledger_row))
    if model_hashes != {bundle}:
        maker = "another model" if model_hashes else "an unknown model"
        remedy = "Give the model that made it, or harmonize again with this one."
        raise ConfigError(f"ours={out}, made by {maker}", f"the images that mmh harmonize made with {uri}", remedy)
    return uri


def _model_hash(out: str, ledger_row: Mapping[str, Any]) -> str | None:
    """Hash of the model that made an image; if the image failed, of the model that made the output that was kept."""
    if ledger_row["status"] in MADE:
        return ledger_row["model_hash"]
    provenance = read_sidecar(Path(out, ledger_row["output"])).get("Provenance")
    return provenance.get("model_hash") if isinstance(provenance, dict) else None


def keep_with_model(model: str, out: str, config: Config, facts: Mapping[str, str] | None = None) -> str:
    """Log the figures of `ours` in ``out`` as metrics of the model version, with the files; returns the run's id.

    ``facts`` become tags of the run.
    """
    evaluation = json.loads(Path(out, EVALUATION).read_text(encoding="utf-8"))
    metrics = {}
    for sequence, entries in evaluation.get(OURS, {}).items():
        for name, entry in entries.items():
            metrics[f"evaluation.{sequence}.{name}"] = entry["value"]
    files = [Path(out, name) for name in (EVALUATION, PER_IMAGE, REPORT)]
    about = evaluation["about"]
    raw_archive = about.get("archives", {}).get(RAW)
    data = RunInput("evaluation", about["data_hash"], raw_archive)
    return record_evaluation(model=model, files=files, metrics=metrics, data=data, config=config, facts=facts or {})


def promote(model: str, alias: str, config: Config) -> Decision:
    """Move an alias to a model if its evaluation is better than that of the current holder.

    Raises
    ------
    ConfigError
        If the rules of ``config.promote`` cannot be used.
    DataError
        If the two were evaluated on different images.
    ModelError
        If either is not registered or was not evaluated.
    """
    uri, _ = cite(model, config.tracking)
    name = uri.removeprefix("models:/").rpartition("/")[0]
    holder, _ = cite(f"models:/{name}@{alias}", config.tracking)
    if uri == holder:
        return Decision(False, (), f"not promoted: {uri} is {name}@{alias} already")
    decision = decide(_evaluated(uri, config), _evaluated(holder, config), config.promote, config.evaluate.seed)
    if not decision.passed:
        return decision
    move_alias(uri, alias)
    outcome = f"promoted: {decision.outcome}; {name}@{alias} was {holder} and is {uri}"
    return dataclasses.replace(decision, outcome=outcome)


def _evaluated(model: str, config: Config) -> Evaluated:
    uri, folder = evaluation_of(model, config.tracking)
    try:
        evaluation = read_object(folder / EVALUATION)
        images = pd.read_parquet(folder / PER_IMAGE).reindex(columns=list(TABLE_COLUMNS))
        return Evaluated(uri, evaluation["about"], images, evaluation.get(OURS, {}))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"evaluation of {uri}: {error}", "the files of mmh evaluate", "Evaluate it again.") from error
