"""Evaluation on Ray: an archive, outputs of any methods for it, and classical methods, measured the same way.

One task is one subject and sequence. It reads the subject's scans, applies every method and sends back small numbers.
What the cohort's metrics need besides stays in the object store, so that the driver's memory does not grow with the
scans. Baselines are fitted on training images only.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray

from mmh_ray.bids.labels import add_labels
from mmh_ray.bids.lesions import add_lesions
from mmh_ray.bids.remote_archive import outlined
from mmh_ray.bids.status import utc_now
from mmh_ray.config import Config
from mmh_ray.distributed.baselines import fit_baselines, note_unfitted, read_training
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.cohort_metrics import StoredCohort, measure_cohort, summarise
from mmh_ray.distributed.selection import (
    check_archives,
    choose_cases,
    data_hash,
    note_untrained,
    training_records,
    usable_rows,
)
from mmh_ray.distributed.target_selection import TARGET_BASELINES, check_unseen, select_at_target, target_style
from mmh_ray.distributed.task_pool import map_unordered
from mmh_ray.errors import ConfigError
from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Case, GridKey, ScoringSettings, common_masks, scan_mask
from mmh_ray.evaluation.metrics.registry import AGAIN, BEST_KNOWN, RAW, TRUTH, ordered
from mmh_ray.evaluation.metrics.runner import EvaluationLog, MetricRunner
from mmh_ray.evaluation.metrics.scoring import CaseMetrics, CasePictures, score_case
from mmh_ray.evaluation.metrics.training import TargetCohort, TrainingImage
from mmh_ray.evaluation.promotion.comparability import conditions
from mmh_ray.evaluation.report.files import FIGURES, write_all
from mmh_ray.evaluation.report.pictures import Pictures
from mmh_ray.models.style.vectors import StyleVectors, style_vectors
from mmh_ray.provenance import check_place, code_version

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Request:
    """What :func:`evaluate` was asked for."""

    archives: Mapping[str, str]
    out: str
    config: Config
    truth: str | None
    labels: str | None
    target: str | None


@dataclass(frozen=True)
class _Selection:
    """Who is scored, and on whom baselines are fitted: with a target, on the target's other people."""

    cases: list[Case]
    training: list[ImageRecord]


@dataclass
class _Scores:
    """What scoring leaves, by sequence.

    Attributes
    ----------
    methods:
        Those with any image, in the order of the tables.
    cases:
        References to every case's metrics.
    pictures:
        Of the pictured cases.
    """

    methods: dict[str, list[str]] = field(default_factory=dict)
    cases: dict[str, list[ray.ObjectRef]] = field(default_factory=dict)
    pictures: dict[str, list[CasePictures]] = field(default_factory=dict)


def evaluate(
    archives: Mapping[str, str],
    out: str,
    config: Config,
    truth: str | None = None,
    model: str | None = None,
    labels: str | None = None,
    target: str | None = None,
) -> dict[str, Any]:
    """Measure every method; write `evaluation.json`, `per_image.parquet`, `figures/*.png` and `report.html` to ``out``.

    Parameters
    ----------
    archives:
        Folder, or its URI in an object store, by name. `raw` is the BIDS archive (or its manifest), `ours` what differences
        are taken from; any other folder of volumes in BIDS naming is a method, NAME_twice the archive NAME harmonized once more.
    config:
        Uses ``evaluate``, ``style``, ``manifest``, ``model.sequences`` and ``prepare.n4_iterations``.
    truth:
        Folder `derivatives/truth` of a simulated archive, for the metrics that need it.
    model:
        URI of the model behind `ours`, to be cited.
    labels:
        Folder of label maps `*_dseg.nii.gz` in BIDS naming; None: those in the `derivatives` of `raw`.
    target:
        Site that scans were moved to: subjects who were scanned there and elsewhere are scored, and what methods make
        of their scans of the other sites is compared with their own scan at the target, which is never an input.
        Baselines are fitted on the target's other people. The truth is what the target's scanner would show.

    Returns
    -------
    dict
        ``{method: {sequence: {metric: {value, low, high, n}}}}``, and under ``differences`` the same of ours minus each
        with ``p``. Under ``about`` who was scored, ``problems`` (images without usable output), ``notes``, times, and
        under ``labels`` ``{sequence: {method: {site: {metric: mean, "n": images}}}}`` of the tissues that others drew.

    Raises
    ------
    ConfigError
        If an archive's name cannot be used or there is none named raw.
    DataError
        If a folder cannot be read, or nothing can be scored; with a target, if nobody was scanned there and elsewhere,
        or if `ours` was made from a scan that it is compared with.
    ModelError
        If `ours` was moved to the target with another style encoder than the configured one.
    """
    check_archives(archives)
    check_place(Path(out, FIGURES, "picture"), out, ConfigError)
    start = time.monotonic()
    started = utc_now().isoformat(timespec="seconds")
    evaluation_log = EvaluationLog()
    connect()
    request = _Request(archives=archives, out=out, config=config, truth=truth, labels=labels, target=target)
    selection = _select(request, evaluation_log)
    cases = selection.cases
    style = _style(cases, request, evaluation_log)
    training_style = None if target is None else style
    training = read_training(selection.training, config.prepare.n4_iterations, training_style, evaluation_log)
    settings = _settings(cases, training, style, request, evaluation_log)
    scores = _score_all(cases, settings, evaluation_log)
    # methods on features need training images of every site, so they have no place at a target
    training_of_features = training if target is None else {}
    cohort = StoredCohort(scores.methods, scores.cases, training_of_features, config.evaluate)
    metrics, picture_data = measure_cohort(cohort, evaluation_log)
    summary = summarise(metrics, config.evaluate)

    problems = sorted(evaluation_log.problems, key=lambda problem: (problem.method, problem.image_id))
    for problem in problems:
        log.warning("%s of %s is not scored: %s", problem.image_id, problem.method, problem.reason)
    scored_records = [record for case in cases for record in case.all_records]
    about = {
        "archives": dict(archives),
        "model": model,
        "target": target,
        "started": started,
        "data_hash": data_hash(cases),
        "conditions": conditions(scored_records, truth, config, target),
        **_counts(cases),
        "labels": {sequence: summary.labels[sequence] for sequence in sorted(summary.labels)},
        "problems": [problem._asdict() for problem in problems],
        "notes": sorted({*evaluation_log.notes, *evaluation_log.runner.sentences()}),
        "processor_seconds": _times(evaluation_log.runner),
        "probe_trainings": dict(sorted(evaluation_log.runner.trainings.items())),
        "seconds": round(time.monotonic() - start, 1),
        "code_version": code_version(),
    }
    evaluation = {**summary.entries, "differences": dict(summary.differences), "about": about}
    tables = (ray.get(summary.tables[key]) for key in sorted(summary.tables))
    write_all(Path(out), evaluation, tables, Pictures(scores.pictures, picture_data))
    return evaluation


def _select(request: _Request, evaluation_log: EvaluationLog) -> _Selection:
    config = request.config
    target = request.target
    notes = evaluation_log.notes
    rows = usable_rows(request.archives, request.out, config, notes, evaluation_log.problems, target)
    with outlined(rows, request.labels) as (labels,):
        add_lesions(rows)
        notes += add_labels(rows, labels)
    records = [ImageRecord.from_row(row) for row in rows]
    if target is None:
        cases = choose_cases(records, config, notes)
        training = training_records(records)
        note_untrained(training, cases, notes)
    else:
        cases, training = select_at_target(records, target)
        check_unseen(cases)
    scored_ids = {record.image_id for case in cases for record in case.records}
    # outputs that are missing of images that nobody scores are no problem
    evaluation_log.problems = [
        problem for problem in evaluation_log.problems if problem.method == RAW or problem.image_id in scored_ids
    ]
    return _Selection(cases, training)


def _style(cases: Sequence[Case], request: _Request, evaluation_log: EvaluationLog) -> StyleVectors | None:
    """What gives style vectors: at a target always, else where networks judge images."""
    config = request.config
    if request.target is not None:
        return target_style(cases, config)
    if config.evaluate.cnn == "none":
        return None
    return style_vectors(config.style, evaluation_log.notes)


def _settings(
    cases: Sequence[Case],
    training: Mapping[str, Sequence[TrainingImage]],
    style: StyleVectors | None,
    request: _Request,
    evaluation_log: EvaluationLog,
) -> ScoringSettings:
    config = request.config
    simple_methods = tuple(BASELINES) if request.target is None else TARGET_BASELINES
    baselines = {case.sequence: fit_baselines(simple_methods, training.get(case.sequence, [])) for case in cases}
    note_unfitted(simple_methods, baselines, request.target, evaluation_log.notes)
    method_archives = [name for name in request.archives if not name.endswith(AGAIN)]
    methods = ordered([*simple_methods, *method_archives])
    sliced_methods = _sliced_methods(methods, config)
    styled_methods = sliced_methods
    target_cohorts = {}
    if request.target is not None:
        if request.truth is not None:
            methods = ordered([*methods, TRUTH])
        styled_methods = frozenset(methods)
        target_cohorts = {sequence: TargetCohort.of(images) for sequence, images in training.items()}
    return ScoringSettings(
        methods=tuple(methods),
        baselines=baselines,
        truth=request.truth,
        iterations=config.prepare.n4_iterations,
        sliced_methods=sliced_methods,
        common_masks=_common_masks(cases, evaluation_log),
        style=style,
        styled_methods=styled_methods,
        target_cohorts=target_cohorts,
        label_table=config.evaluate.label_table,
    )


def _sliced_methods(methods: Sequence[str], config: Config) -> frozenset[str]:
    """Methods whose images the convolutional probes judge."""
    if config.evaluate.cnn == "none":
        return frozenset()
    if config.evaluate.cnn == "all":
        return frozenset(methods)
    return frozenset(method for method in methods if method in (RAW, BEST_KNOWN) or method not in BASELINES)


def _common_masks(cases: Sequence[Case], evaluation_log: EvaluationLog) -> dict[GridKey, np.ndarray]:
    """What is brain in everybody, of sequences with people who have several images."""
    sequences = {case.sequence for case in cases if len(case.records) > 1}
    records = [record for case in cases for record in case.records if case.sequence in sequences]
    tasks = map_unordered(_read_mask, records, None, "Reading masks", "images")
    readable = ((done.item, done.result) for done in tasks if not isinstance(done.result, Exception))
    common = common_masks(readable)
    sequences_with_mask = {sequence for sequence, _ in common}
    if sequences - sequences_with_mask:
        evaluation_log.notes.append("no part of the grid is brain in everybody: people cannot be looked for")
    return common


def _read_mask(record: ImageRecord, _shared: None) -> np.ndarray:
    return scan_mask(record)


@dataclass
class _CaseReport:
    """What comes back to the driver of a case; its metrics stay in the object store."""

    methods: set[str]
    pictures: CasePictures
    log: EvaluationLog


def _score_case(case: Case, settings: ScoringSettings) -> tuple[_CaseReport, CaseMetrics]:
    scores = score_case(case, settings)
    methods = {image.method for image in scores.metrics.images}
    return _CaseReport(methods, scores.pictures, scores.log), scores.metrics


def _score_all(cases: Sequence[Case], settings: ScoringSettings, evaluation_log: EvaluationLog) -> _Scores:
    """Score every case and gather notes, problems and seconds in the log."""
    metrics: dict[str, dict[str, ray.ObjectRef]] = defaultdict(dict)
    pictures: dict[str, dict[str, CasePictures]] = defaultdict(dict)
    methods: dict[str, set[str]] = defaultdict(set)
    for done in map_unordered(_score_case, cases, settings, "Evaluating", "subjects", keep=True):
        case: Case = done.item
        if isinstance(done.result, Exception):
            for record in case.records:
                evaluation_log.add_unusable(RAW, record.image_id, done.result)
            continue
        report: _CaseReport = done.result
        evaluation_log.merge(report.log)
        methods[case.sequence] |= report.methods
        assert done.kept is not None
        metrics[case.sequence][case.subject] = done.kept
        if case.is_pictured:
            pictures[case.sequence][case.subject] = report.pictures
    scores = _Scores(cases=_by_subject(metrics), pictures=_by_subject(pictures))
    for sequence, with_images in methods.items():
        if with_images:
            scores.methods[sequence] = [method for method in settings.methods if method in with_images]
    return scores


def _by_subject(groups: Mapping[str, Mapping[str, T]]) -> dict[str, list[T]]:
    """Values in the order of the subjects' names, whatever the order in which tasks ended."""
    in_order = {}
    for sequence, by_subject in groups.items():
        in_order[sequence] = [by_subject[subject] for subject in sorted(by_subject)]
    return in_order


def _counts(cases: Iterable[Case]) -> dict[str, dict[str, int]]:
    """Subjects, images and sites by sequence."""
    subjects: dict[str, int] = defaultdict(int)
    images: dict[str, int] = defaultdict(int)
    sites: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        subjects[case.sequence] += 1
        images[case.sequence] += len(case.records)
        sites[case.sequence] |= {record.site for record in case.records}
    return {
        "subjects": dict(subjects),
        "images": dict(images),
        "sites": {sequence: len(names) for sequence, names in sites.items()},
    }


def _times(runner: MetricRunner) -> dict[str, dict[str, float]]:
    """Processor seconds and calls of every metric."""
    times = {}
    for metric in sorted(runner.calls):
        times[metric] = {"seconds": round(runner.seconds[metric], 3), "calls": runner.calls[metric]}
    return times
