"""Evaluation of scans moved to a target site, on Ray: traveling subjects who were scanned there, one task a subject and sequence."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmh_ray import tracking
from mmh_ray.bids.derivatives import sidecar_path
from mmh_ray.bids.entities import desc_of, output_path, parse
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.style_encoder import StyleDescriber
from mmh_ray.distributed.task_pool import Done, run_tasks
from mmh_ray.errors import DataError
from mmh_ray.evaluation.metrics.agreement import truth_error
from mmh_ray.evaluation.probes.site import cnn_site_probe, site_probe
from mmh_ray.evaluation.report.figures import before_after
from mmh_ray.evaluation.target_metrics import (
    GLOBAL,
    METHODS,
    OURS,
    RAW,
    CohortImage,
    Row,
    TargetCase,
    TargetCohort,
    TargetSettings,
    cohort_image,
    middle_slices,
    score_target,
)
from mmh_ray.files import read_object
from mmh_ray.models.style.backbones import EMBEDDED
from mmh_ray.models.style.encoder import check_same_encoder, make_style_encoder
from mmh_ray.models.target.bundle import load_target

log = logging.getLogger(__name__)

MEASURES = ("psnr", "ssim", "w1", "gradient_correlation")
MORE = ("psnr_n4", "ssim_n4", "w1_n4", "dice", "style_distance", "truth_nrmse_direct")
"""Means over scans, too."""
PROBED = (RAW, GLOBAL, OURS)

Results = dict[str, dict[str, dict[str, float | None]]]


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
    -------
    Sequence, method, measure to the mean over source scans (``truth_nrmse``: over the cohort); ``psnr_n4``, ``ssim_n4`` and ``w1_n4``
    compare with the target's scans without their bias fields; ``w1_of_raw`` is the share of raw's W1 (``w1_n4_of_raw``: of its w1_n4),
    ``site_probe_style`` and ``site_probe_cnn`` the balanced accuracy of a probe trained anew that asks which site a scan came from
    (``site_probe_chance`` by guessing), ``identity`` the mean absolute change of the target's own scans, ``scans`` and ``failed`` how
    many could be scored and not. What cannot be had is None. Scans that cannot be scored are logged with their reasons.

    Raises
    ------
    DataError
        If nobody was scanned at the target site and elsewhere, the target was made from a scan that is an answer, or nothing can be
        scored.
    ModelError
        If the target was trained with another style encoder than the configured one.
    """
    cases, others = _cases_and_others(manifest, site, unified, moved, config, target)
    _check_answers(cases)
    connect()
    iterations, slices = config.prepare.n4_iterations, config.evaluate.cnn != "none"
    settings = TargetSettings(iterations, _describer(cases, config), truth, slices, tuple(methods))
    settings = replace(settings, cohorts=_cohorts(others, settings))
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for done in run_tasks(score_target, cases, settings, "Evaluating the target", "subjects"):
        for row in _rows(done, methods):
            if "reason" in row:
                log.warning("%s of %s is not scored: %s", row["image_id"], row["method"], row["reason"])
            found[row["sequence"], row["method"]].append(row)
    if not any("psnr" in row for rows in found.values() for row in rows):
        remedy = "See the log; --target names a target that is not the site's."
        raise DataError(f"{moved}: no scan could be scored", "outputs of `mmh harmonize --target`", remedy)
    return {name: _summaries(found, name, methods) for name in sorted({case.sequence for case in cases})}


def draw(manifest: str, site: str, unified: str, moved: str, config: Config, truth: str | None, out: Path) -> None:
    """A picture per sequence of the first traveling subject, ``target_SEQUENCE.png``: scans, outputs, answer and truth by source site.

    Raises
    ------
    DataError
        As :func:`evaluate_target`, and if a scan or output of that subject cannot be read.
    """
    cases, _ = _cases_and_others(manifest, site, unified, moved, config)
    for case in {case.sequence: case for case in reversed(cases)}.values():
        rows = middle_slices(case, config.prepare.n4_iterations, truth)
        sites = [row["site"] for row in case.sources]
        before_after(out / f"target_{case.sequence}.png", rows, sites, f"{case.sequence} of {case.subject} to {site}")


def _cases_and_others(
    manifest: str, site: str, unified: str, moved: str, config: Config, target: str | None = None
) -> tuple[list[TargetCase], list[Row]]:
    """Traveling subjects' scans, and the target's scans of everyone else."""
    columns = ["image_id", "uri", "subject", "session", "site", "sequence", "mask_uri", "status"]
    rows = [row for row in read_manifest(manifest).select(columns).to_pylist() if row["status"] == "ok"]
    rows = [row for row in rows if row["sequence"] in config.model.sequences]
    cases = _cases(rows, site, unified, moved, target or site)
    if not cases:
        raise DataError(
            f"{manifest}: nobody scanned at {site} and elsewhere", "traveling subjects", "Name another site."
        )
    travelers = {case.subject for case in cases}
    return cases, [row for row in rows if row["site"] == site and row["subject"] not in travelers]


def _describer(cases: Sequence[TargetCase], config: Config) -> StyleDescriber:
    """The configured style encoder, which must be the one of the target that made the outputs, as their sidecars tell."""
    made = next(filter(None, map(_made_by, cases)), None)
    if made is None:
        return StyleDescriber(config.style)
    if config.style.backbone != EMBEDDED and "training" in made:  # whose aggregator lies with the target
        target = load_target(*tracking.resolve_recorded_target(str(made.get("URI")), config.tracking))
        target.encoder(config.style, 1.0)
        return StyleDescriber(config.style, target.aggregator)
    recorded = made.get("style_encoder") or made["training"]["style_encoder"]
    check_same_encoder(recorded, make_style_encoder(config.style, 1.0).describe())
    return StyleDescriber(config.style)


def _made_by(case: TargetCase) -> Row | None:
    """The target that made the outputs of a case, as the first sidecar tells; None where there is none."""
    paths = (sidecar_path(Path(row["target"])) for row in case.sources)
    known = next((path for path in paths if os.path.isfile(path)), None)
    if known is None:
        return None
    try:
        made = read_object(known)["TargetModel"]
        if made is None or isinstance(made, dict):
            return made
        raise ValueError(f"TargetModel is a {type(made).__name__}")
    except (OSError, ValueError, KeyError) as error:
        received = f"{known}: {type(error).__name__}: {error}"
        raise DataError(received, "the sidecar of a harmonized image", "Harmonize the image again.") from error


def _check_answers(cases: Sequence[TargetCase]) -> None:
    """DataError where the scan to compare with is one that the target was made from."""
    for case in cases:
        made, answer = _made_by(case) or {}, case.target["image_id"]
        training = made.get("training", {}).get(case.sequence, {})
        known = [made.get("reference"), *training.get("images", []), *training.get("validation_images", [])]
        if answer in known:
            received = f"{answer}, which the target {made.get('site', made.get('reference'))} was made from"
            remedy = "Make the target from scans of other people (travelers are of split test)."
            raise DataError(received, "a scan at the target site that it has never seen", remedy)


def _cases(rows: list[Row], site: str, unified: str, moved: str, target: str) -> list[TargetCase]:
    people: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        people[row["subject"], row["sequence"]].append(row)
    cases = []
    for (subject, sequence), own in sorted(people.items()):
        targets = [row for row in own if row["site"] == site]
        sources = [row | _outputs(row, target, unified, moved) for row in own if row["site"] != site]
        if targets and sources:
            answer = targets[0] | _outputs(targets[0], target, unified, moved)
            cases.append(TargetCase(subject, sequence, answer, tuple(sources)))
    return cases


def _outputs(row: Row, target: str, unified: str, moved: str) -> dict[str, str]:
    entities = parse(row["uri"])
    return {
        "global": str(Path(unified, output_path(entities))),
        "target": str(Path(moved, output_path(entities, desc=desc_of(target)))),
    }


def _cohorts(rows: list[Row], settings: TargetSettings) -> dict[str, TargetCohort]:
    found: dict[str, dict[str, CohortImage]] = defaultdict(dict)
    for done in run_tasks(cohort_image, rows, settings, "Fitting baselines", "images"):
        if isinstance(done.result, Exception):
            log.warning("%s takes no part in the target's cohort: %s", done.item["image_id"], done.result)
        else:
            found[done.item["sequence"]][done.item["image_id"]] = done.result
    return {sequence: TargetCohort.of([own[name] for name in sorted(own)]) for sequence, own in found.items()}


def _rows(done: Done, methods: Sequence[str]) -> list[Row]:
    """A case's rows; those of one whose answer or truth cannot be read have the reason."""
    if not isinstance(done.result, Exception):
        return done.result
    case: TargetCase = done.item
    names = ("image_id", "subject", "site", "sequence")
    about = [{name: source[name] for name in names} | {"reason": str(done.result)} for source in case.sources]
    return [row | {"method": method} for row in about for method in methods]


def _summaries(
    found: Mapping[tuple[str, str], list[Row]], sequence: str, methods: Sequence[str] = METHODS
) -> dict[str, dict[str, float | None]]:
    summaries = {method: _summary(found.get((sequence, method), []), method) for method in methods}
    for name in ("w1", "w1_n4"):
        raw = summaries[RAW][name] if RAW in summaries else None
        for summary in summaries.values():
            own = summary[name]
            summary[f"{name}_of_raw"] = own / raw if raw and own is not None else None
    return summaries


def _summary(rows: list[Row], method: str) -> dict[str, float | None]:
    moved = [row["identity"] for row in rows if "identity" in row]
    rows = sorted((row for row in rows if "identity" not in row), key=lambda row: row["image_id"])
    scored = [row for row in rows if "reason" not in row]
    values: dict[str, float | None] = {"identity": float(np.mean(moved)) if moved else None}
    for name in (*MEASURES, *MORE):
        own = [row[name] for row in scored if name in row]
        values[name] = float(np.mean(own)) if own else None
    joints = [row["joint"] for row in scored if "joint" in row]
    values["truth_nrmse"] = truth_error(joints).cohort if joints else None
    values |= {"scans": len(scored), "failed": len(rows) - len(scored)}
    return values | (_probes(scored) if method in PROBED else {})


def _probes(rows: list[Row]) -> dict[str, float | None]:
    """Can the site that a scan came from still be told? By probes trained anew, with folds by subject."""
    labels = [row["site"] for row in rows], [row["subject"] for row in rows]
    found: dict[str, float | None] = dict.fromkeys(("site_probe_style", "site_probe_cnn", "site_probe_chance"))
    try:
        result = site_probe(np.array([row["style"] for row in rows]), *labels)
        found |= {"site_probe_style": result.balanced_accuracy, "site_probe_chance": result.chance}
        if rows[0]["slices"] is not None:
            slices = np.stack([row["slices"] for row in rows])
            found["site_probe_cnn"] = cnn_site_probe(slices, *labels).balanced_accuracy
    except DataError as error:
        log.info("no site probes: %s", error)
    return found
