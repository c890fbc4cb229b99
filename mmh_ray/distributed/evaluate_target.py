"""Evaluation of scans moved to a target site, on Ray: of traveling subjects who were scanned there.

One task is one subject and sequence.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmh_ray import tracking
from mmh_ray.bids.derivatives import sidecar_path
from mmh_ray.bids.entities import desc_of, output_path, parse
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.style_encoder import StyleDescriber
from mmh_ray.distributed.task_pool import TaskResult, map_unordered
from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.metrics.agreement import truth_error
from mmh_ray.evaluation.probes.site import cnn_site_probe, site_probe
from mmh_ray.evaluation.report.figures import before_after
from mmh_ray.evaluation.target_metrics import (
    GLOBAL,
    METHODS,
    OURS,
    RAW,
    CohortImage,
    TargetCase,
    TargetCohort,
    TargetMetrics,
    TargetSettings,
    cohort_image,
    middle_slices,
    score_target,
)
from mmh_ray.files import read_object
from mmh_ray.models.style.embedded import EMBEDDED
from mmh_ray.models.style.encoder import check_same_encoder, make_style_encoder
from mmh_ray.models.target.bundle import load_target

log = logging.getLogger(__name__)

MAIN_METRICS = ("psnr", "ssim", "w1", "gradient_correlation")
MORE = ("psnr_n4", "ssim_n4", "w1_n4", "dice", "style_distance", "truth_nrmse_direct")
"""Means over scans, too."""
PROBED = (RAW, GLOBAL, OURS)

Values = dict[str, float | None]
"""By metric; None where it cannot be had."""

Results = dict[str, dict[str, Values]]
"""The same by sequence and method."""


def evaluate_target(
    manifest: str,
    site: str,
    unified: str,
    moved: str,
    config: Config,
    truth: str | None = None,
    methods: Sequence[str] = METHODS,
    target: str | None = None,
) -> Results:
    """Score how near the traveling subjects' scans come to their own scans at the target site.

    Parameters
    ----------
    manifest:
        Path of the manifest.
    unified, moved:
        Folders of the derivatives of the global harmonizer and of the target.
    truth:
        Folder ``derivatives/truth`` of a simulated archive; without it what needs it is None.
    methods:
        Those of :data:`METHODS` to score.
    target:
        Name of the target in the outputs' names, where it is not the site's: of a scan its image id.

    Returns
    ------- Sequence, method, metric to the mean over source scans (``truth_nrmse``: over the cohort). What cannot be
    had is None. Scans that cannot be scored are logged with their reasons.

    - ``psnr_n4``, ``ssim_n4`` and ``w1_n4`` compare with the target's scans without their bias fields.
    - ``w1_of_raw`` is the share of raw's W1 (``w1_n4_of_raw``: of its w1_n4).
    - ``site_probe_style`` and ``site_probe_cnn`` are the balanced accuracy of a probe trained anew that asks which
    site a
      scan came from (``site_probe_chance``: by guessing).
    - ``identity`` is the mean absolute change of the target's own scans.
    - ``scans`` and ``failed`` are how many could be scored and not.

    Raises
    ------
    DataError
        If nobody was scanned at the target site and elsewhere, the target was made from a scan that is an answer, or
        nothing can be scored.
    ModelError
        If the target was trained with another style encoder than the configured one.
    """
    cases, cohort_records = _cases_and_cohort(manifest, site, unified, moved, config, target)
    check_answers(cases)
    connect()
    settings = TargetSettings(
        iterations=config.prepare.n4_iterations,
        describe=style_describer(cases, config),
        truth=truth,
        has_slices=config.evaluate.cnn != "none",
        methods=tuple(methods),
    )
    settings = replace(settings, cohorts=_read_cohorts(cohort_records, settings))
    scores: dict[tuple[str, str], list[TargetMetrics]] = defaultdict(list)
    for done in map_unordered(score_target, cases, settings, "Evaluating the target", "subjects"):
        for metrics in _metrics_of_case(done, methods):
            if metrics.reason is not None:
                log.warning("%s of %s is not scored: %s", metrics.record.image_id, metrics.method, metrics.reason)
            scores[metrics.record.sequence, metrics.method].append(metrics)
    if not any("psnr" in metrics.values for group in scores.values() for metrics in group):
        remedy = "See the log; --target names a target that is not the site's."
        raise DataError(f"{moved}: no scan could be scored", "outputs of `mmh harmonize --target`", remedy)
    sequences = sorted({case.sequence for case in cases})
    return {sequence: summarise_methods(scores, sequence, methods) for sequence in sequences}


def draw(manifest: str, site: str, unified: str, moved: str, config: Config, truth: str | None, out: Path) -> None:
    """A picture per sequence of the first traveling subject, ``target_SEQUENCE.png``.

    It shows scans, outputs, answer and truth by source site.

    Raises
    ------
    DataError
        As :func:`evaluate_target`, and if a scan or output of that subject cannot be read.
    """
    cases, _ = _cases_and_cohort(manifest, site, unified, moved, config)
    first_cases: dict[str, TargetCase] = {}
    for case in cases:
        first_cases.setdefault(case.sequence, case)
    for sequence, case in first_cases.items():
        rows = middle_slices(case, config.prepare.n4_iterations, truth)
        sites = [record.site for record in case.sources]
        before_after(out / f"target_{sequence}.png", rows, sites, f"{sequence} of {case.subject} to {site}")


def _cases_and_cohort(
    manifest: str, site: str, unified: str, moved: str, config: Config, target: str | None = None
) -> tuple[list[TargetCase], list[ImageRecord]]:
    """Traveling subjects' scans, and the target's scans of everyone else."""
    columns = ["image_id", "uri", "subject", "session", "site", "sequence", "mask_uri", "status"]
    records = []
    for row in read_manifest(manifest).select(columns).to_pylist():
        if row["status"] == "ok" and row["sequence"] in config.model.sequences:
            records.append(ImageRecord.from_row(row))
    cases = target_cases(records, site, unified, moved, target or site)
    if not cases:
        received = f"{manifest}: nobody scanned at {site} and elsewhere"
        raise DataError(received, "traveling subjects", "Name another site.")
    travelers = {case.subject for case in cases}
    return cases, [record for record in records if record.site == site and record.subject not in travelers]


def target_cases(records: Iterable[ImageRecord], site: str, unified: str, moved: str, target: str) -> list[TargetCase]:
    """Subjects scanned at the target site and elsewhere, with the paths of their outputs.

    Parameters
    ----------
    unified, moved:
        Folders of the derivatives of the global harmonizer and of the target.
    target:
        Name of the target in the outputs' names.
    """
    groups: dict[tuple[str, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        with_outputs = replace(record, outputs=_output_paths(record, target, unified, moved))
        groups[record.subject, record.sequence].append(with_outputs)
    cases = []
    for (subject, sequence), images in sorted(groups.items()):
        at_target = [record for record in images if record.site == site]
        elsewhere = [record for record in images if record.site != site]
        if at_target and elsewhere:
            cases.append(TargetCase(subject, sequence, at_target[0], tuple(elsewhere)))
    return cases


def style_describer(cases: Sequence[TargetCase], config: Config) -> StyleDescriber:
    """The configured style encoder; the sidecars of the outputs must name the same one.

    Raises
    ------
    ModelError
        If the target that made the outputs was trained with another style encoder.
    """
    recorded_target = None
    for case in cases:
        recorded_target = recorded_target or _recorded_target(case)
    if not recorded_target:
        return StyleDescriber(config.style)
    if config.style.backbone != EMBEDDED and "training" in recorded_target:
        # the aggregator of such a backbone lies with the target
        target = load_target(*tracking.resolve_recorded_target(str(recorded_target.get("URI")), config.tracking))
        target.encoder(config.style, 1.0)
        return StyleDescriber(config.style, target.aggregator)
    recorded_encoder = recorded_target.get("style_encoder") or recorded_target["training"]["style_encoder"]
    check_same_encoder(recorded_encoder, make_style_encoder(config.style, 1.0).describe())
    return StyleDescriber(config.style)


def check_answers(cases: Sequence[TargetCase]) -> None:
    """DataError where the scan to compare with is one that the target was made from."""
    for case in cases:
        recorded_target = _recorded_target(case) or {}
        reference = recorded_target.get("reference")
        training = recorded_target.get("training", {}).get(case.sequence, {})
        seen = [reference, *training.get("images", []), *training.get("validation_images", [])]
        answer = case.target.image_id
        if answer in seen:
            received = f"{answer}, which the target {recorded_target.get('site', reference)} was made from"
            remedy = "Make the target from scans of other people (travelers are of split test)."
            raise DataError(received, "a scan at the target site that it has never seen", remedy)


def _recorded_target(case: TargetCase) -> dict[str, Any] | None:
    """The target that made the outputs of a case, as the first sidecar tells; None where there is none."""
    sidecars = [sidecar_path(Path(record.outputs[OURS])) for record in case.sources]
    existing = [sidecar for sidecar in sidecars if os.path.isfile(sidecar)]
    if not existing:
        return None
    try:
        recorded_target = read_object(existing[0])["TargetModel"]
        if recorded_target is None or isinstance(recorded_target, dict):
            return recorded_target
        raise ValueError(f"TargetModel is a {type(recorded_target).__name__}")
    except (OSError, ValueError, KeyError) as error:
        received = f"{existing[0]}: {type(error).__name__}: {error}"
        raise DataError(received, "the sidecar of a harmonized image", "Harmonize the image again.") from error


def _output_paths(record: ImageRecord, target: str, unified: str, moved: str) -> dict[str, str]:
    entities = parse(record.uri)
    return {
        GLOBAL: str(Path(unified, output_path(entities))),
        OURS: str(Path(moved, output_path(entities, desc=desc_of(target)))),
    }


def _read_cohorts(records: Sequence[ImageRecord], settings: TargetSettings) -> dict[str, TargetCohort]:
    images: dict[str, dict[str, CohortImage]] = defaultdict(dict)
    for done in map_unordered(cohort_image, records, settings, "Fitting baselines", "images"):
        record: ImageRecord = done.item
        if isinstance(done.result, Exception):
            log.warning("%s takes no part in the target's cohort: %s", record.image_id, done.result)
        else:
            images[record.sequence][record.image_id] = done.result
    cohorts = {}
    for sequence, by_id in images.items():
        # in the order of names, whatever the order in which tasks ended
        cohorts[sequence] = TargetCohort.of([by_id[image_id] for image_id in sorted(by_id)])
    return cohorts


def _metrics_of_case(done: TaskResult, methods: Sequence[str]) -> list[TargetMetrics]:
    """Of a case whose answer or truth cannot be read, the reason for each of its images and methods."""
    if not isinstance(done.result, Exception):
        return done.result
    case: TargetCase = done.item
    reason = str(done.result)
    return [TargetMetrics(record, method, reason=reason) for record in case.sources for method in methods]


def summarise_methods(
    scores: Mapping[tuple[str, str], Sequence[TargetMetrics]], sequence: str, methods: Sequence[str] = METHODS
) -> dict[str, Values]:
    """By method, means over the scans of a sequence; ``scores`` are by sequence and method."""
    summaries = {method: _summarise(scores.get((sequence, method), []), method) for method in methods}
    for name in ("w1", "w1_n4"):
        of_raw = summaries[RAW][name] if RAW in summaries else None
        for summary in summaries.values():
            value = summary[name]
            summary[f"{name}_of_raw"] = value / of_raw if of_raw and value is not None else None
    return summaries


def _summarise(scores: Sequence[TargetMetrics], method: str) -> Values:
    identities = [metrics.values["identity"] for metrics in scores if "identity" in metrics.values]
    of_sources = [metrics for metrics in scores if "identity" not in metrics.values]
    of_sources.sort(key=lambda metrics: metrics.record.image_id)
    scored = [metrics for metrics in of_sources if metrics.reason is None]
    values: Values = {"identity": _mean(identities)}
    for name in (*MAIN_METRICS, *MORE):
        values[name] = _mean([metrics.values[name] for metrics in scored if name in metrics.values])
    joints = [metrics.joint for metrics in scored if metrics.joint is not None]
    values["truth_nrmse"] = truth_error(joints).cohort if joints else None
    values["scans"] = len(scored)
    values["failed"] = len(of_sources) - len(scored)
    if method in PROBED:
        values |= _probe_sites(scored)
    return values


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _probe_sites(scored: Sequence[TargetMetrics]) -> Values:
    """Can the site that a scan came from still be told? By probes trained anew, with folds by subject."""
    sites = [metrics.record.site for metrics in scored]
    subjects = [metrics.record.subject for metrics in scored]
    styles = [metrics.style for metrics in scored]
    slices = [metrics.slices for metrics in scored if metrics.slices is not None]
    values: Values = dict.fromkeys(("site_probe_style", "site_probe_cnn", "site_probe_chance"))
    try:
        by_style = site_probe(np.array(styles), sites, subjects)
        values["site_probe_style"] = by_style.balanced_accuracy
        values["site_probe_chance"] = by_style.chance
        if slices:
            values["site_probe_cnn"] = cnn_site_probe(np.stack(slices), sites, subjects).balanced_accuracy
    except DataError as error:
        log.info("no site probes: %s", error)
    return values
