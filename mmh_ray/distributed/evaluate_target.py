"""Evaluation of scans moved to a target site, on Ray: traveling subjects who were scanned there, one task a subject and sequence."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mmh_ray.bids.entities import desc_of, output_path, parse
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.tasks import run_tasks
from mmh_ray.errors import DataError
from mmh_ray.evaluation.baselines import HistogramMatching, Nyul
from mmh_ray.evaluation.metrics import truth_error
from mmh_ray.evaluation.target import (
    METHODS,
    Row,
    TargetCase,
    TargetCohort,
    TargetSettings,
    cohort_quantiles,
    score_target,
)

log = logging.getLogger(__name__)

MEASURES = ("psnr", "ssim", "w1", "gradient_correlation")

Results = dict[str, dict[str, dict[str, float | None]]]


def evaluate_target(
    manifest: str, site: str, unified: str, moved: str, config: Config, truth: str | None = None
) -> Results:
    """Score how near the traveling subjects' scans come to their own scans at the target site.

    Parameters
    ----------
    manifest:
        Path of the manifest.
    unified, moved:
        Folders of the derivatives of the global harmonizer and of the target.
    truth:
        Folder ``derivatives/truth`` of a simulated archive; without it ``truth_nrmse`` is None.

    Returns
    -------
    Sequence, method, measure to the mean over source scans (``truth_nrmse``: over the cohort).

    Raises
    ------
    DataError
        If nobody was scanned at the target site and elsewhere, or a scan or output cannot be read.
    """
    columns = ["image_id", "uri", "subject", "session", "site", "sequence", "mask_uri", "status"]
    rows = [row for row in read_manifest(manifest).select(columns).to_pylist() if row["status"] == "ok"]
    rows = [row for row in rows if row["sequence"] in config.model.sequences]
    cases = _cases(rows, site, unified, moved)
    if not cases:
        raise DataError(
            f"{manifest}: nobody scanned at {site} and elsewhere", "traveling subjects", "Name another site."
        )
    connect()
    travelers = {case.subject for case in cases}
    others = [row for row in rows if row["site"] == site and row["subject"] not in travelers]
    settings = TargetSettings(_cohorts(others, config.prepare.n4_iterations), config.prepare.n4_iterations, truth)
    found = defaultdict(list)
    for done in run_tasks(score_target, cases, settings, "Evaluating the target", "subjects"):
        for row in _result(done):
            found[row["sequence"], row["method"]].append(row)
    return {name: {method: _summary(found[name, method]) for method in METHODS} for name in settings.cohorts}


def _cases(rows: list[Row], site: str, unified: str, moved: str) -> list[TargetCase]:
    people: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        people[row["subject"], row["sequence"]].append(row)
    cases = []
    for (subject, sequence), own in sorted(people.items()):
        targets = [row for row in own if row["site"] == site]
        sources = [row | _outputs(row, site, unified, moved) for row in own if row["site"] != site]
        if targets and sources:
            cases.append(TargetCase(subject, sequence, targets[0], tuple(sources)))
    return cases


def _outputs(row: Row, site: str, unified: str, moved: str) -> dict[str, str]:
    entities = parse(row["uri"])
    return {
        "global": str(Path(unified, output_path(entities))),
        "target": str(Path(moved, output_path(entities, desc=desc_of(site)))),
    }


def _cohorts(rows: list[Row], iterations: tuple[int, ...]) -> dict[str, TargetCohort]:
    found: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for done in run_tasks(cohort_quantiles, rows, iterations, "Fitting baselines", "images"):
        found[done.item["sequence"]].append((done.item["image_id"], _result(done)))
    cohorts = {}
    for sequence, images in found.items():
        before, after, scaled = zip(*(quantiles for _, quantiles in sorted(images)), strict=True)
        cohorts[sequence] = TargetCohort(
            HistogramMatching.from_quantiles(after), Nyul.from_quantiles(before), np.concatenate(scaled)
        )
    return cohorts


def _result(done: Any) -> Any:
    if isinstance(done.result, Exception):
        raise done.result
    return done.result


def _summary(rows: list[Row]) -> dict[str, float | None]:
    values: dict[str, float | None] = {name: float(np.mean([row[name] for row in rows])) for name in MEASURES}
    joints = [row["joint"] for row in rows if row["joint"] is not None]
    values["truth_nrmse"] = truth_error(joints).cohort if joints else None
    return values
