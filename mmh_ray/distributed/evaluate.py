"""Evaluates an archive on Ray: the outputs of any methods and the baselines are measured in the same way.

One task is one subject and sequence. It reads the subject's scans, applies every method and returns a few numbers. The
inputs of the cohort metrics stay in the object store, so that the driver's memory does not grow with the scans.
Baselines are fitted on training images only.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class _Request:
    """Arguments of :func:`evaluate`."""

    archives: Mapping[str, str]
    out: str
    config: Config
    truth: str | None
    labels: str | None
    target: str | None


@dataclass
class _Scores:
    """The results of scoring, by sequence.

    Attributes
    ----------
    methods:
        Methods with any image, in the order of the tables.
    cases:
        References to the metrics of each case.
    pictures:
        Pictures of the cases that are shown in the report.
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
        Folder, or its URI in an object store, by name. `raw` is the BIDS archive (or its manifest), `ours` the method
        that the others are subtracted from. Any other folder of volumes in BIDS naming is a method, too; NAME_twice is
        the archive NAME harmonized once more.
    config:
        Uses ``evaluate``, ``style``, ``manifest``, ``model.sequences`` and ``prepare.n4_iterations``.
    truth:
        Folder `derivatives/truth` of a simulated archive, for the metrics that need it.
    model:
        URI of the model behind `ours`, to be cited.
    labels:
        Folder of label maps `*_dseg.nii.gz` in BIDS naming; None: those in the `derivatives` of `raw`.
    target:
        Site that scans were moved to. Subjects who were scanned there and elsewhere are scored: the methods' outputs
        for their scans of other sites are compared with their scan at the target, which is never an input. Baselines
        are fitted on the target's other people. The truth is the noise-free image of the target's scanner.

    Returns
    -------
    dict
        ``{method: {sequence: {metric: {value, low, high, n}}}}``, and under ``differences`` the same with ``p`` of ours
        minus each method. ``about`` says who was scored, and holds ``problems`` (images without usable output),
        ``notes``, times, and the metrics of the tissues in label maps as ``labels``,
        ``{sequence: {method: {site: {metric: mean, "n": images}}}}``.

    Raises
    ------
    ConfigError
        If an archive's name cannot be used, or no archive is named raw.
    DataError
        If a folder cannot be read, or nothing can be scored; with a target, if nobody was scanned there and elsewhere,
        or if the target of `ours` was made from a scan that `ours` is compared with.
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
    cases, training_images = _select(request, evaluation_log)
    style = _style(cases, request, evaluation_log)
    training_style = None if target is None else style
    training = read_training(training_images, config.prepare.n4_iterations, training_style, evaluation_log)
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


def _select(request: _Request, evaluation_log: EvaluationLog) -> tuple[list[Case], list[ImageRecord]]:
    """Subjects to score, and images to fit baselines on: with a target, those of the target's other people."""
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
    # A missing output of an image that is not scored is no problem.
    evaluation_log.problems = [
        problem for problem in evaluation_log.problems if problem.method == RAW or problem.image_id in scored_ids
    ]
    return cases, training


def _style(cases: Sequence[Case], request: _Request, evaluation_log: EvaluationLog) -> StyleVectors | None:
    """The encoder of style vectors: always with a target, otherwise if the convolutional probes run."""
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
    """Methods whose images the convolutional probes are run on."""
    if config.evaluate.cnn == "none":
        return frozenset()
    if config.evaluate.cnn == "all":
        return frozenset(methods)
    return frozenset(method for method in methods if method in (RAW, BEST_KNOWN) or method not in BASELINES)


def _common_masks(cases: Sequence[Case], evaluation_log: EvaluationLog) -> dict[GridKey, np.ndarray]:
    """Voxels that are brain in every image, for sequences in which somebody has several images."""
    sequences = {case.sequence for case in cases if len(case.records) > 1}
    records = [record for case in cases for record in case.records if case.sequence in sequences]
    tasks = map_unordered(scan_mask, records, (), "Reading masks", "images")
    readable = ((done.item, done.result) for done in tasks if not isinstance(done.result, Exception))
    common = common_masks(readable)
    sequences_with_mask = {sequence for sequence, _ in common}
    if sequences - sequences_with_mask:
        evaluation_log.notes.append("no voxel of the grid is brain in every image: people cannot be recognized")
    return common


@dataclass
class _CaseReport:
    """The part of a case's scores that returns to the driver; its metrics stay in the object store."""

    methods: set[str]
    pictures: CasePictures
    log: EvaluationLog


def _score_case(case: Case, settings: ScoringSettings) -> tuple[_CaseReport, CaseMetrics]:
    scores = score_case(case, settings)
    methods = {image.method for image in scores.metrics.images}
    return _CaseReport(methods, scores.pictures, scores.log), scores.metrics


def _score_all(cases: Sequence[Case], settings: ScoringSettings, evaluation_log: EvaluationLog) -> _Scores:
    """Score every case, and gather notes, problems and seconds in the log."""
    scores = _Scores()
    methods: dict[str, set[str]] = defaultdict(set)
    scored = map_unordered(_score_case, cases, (settings,), "Evaluating", "subjects", keep=True)
    # Sorted, so that results do not depend on the order in which tasks ended.
    for done in sorted(scored, key=lambda done: (done.item.sequence, done.item.subject)):
        case: Case = done.item
        if isinstance(done.result, Exception):
            for record in case.records:
                evaluation_log.add_unusable(RAW, record.image_id, done.result)
            continue
        report: _CaseReport = done.result
        evaluation_log.merge(report.log)
        methods[case.sequence] |= report.methods
        assert done.kept is not None
        scores.cases.setdefault(case.sequence, []).append(done.kept)
        if case.is_pictured:
            scores.pictures.setdefault(case.sequence, []).append(report.pictures)
    for sequence, with_images in methods.items():
        if with_images:
            scores.methods[sequence] = [method for method in settings.methods if method in with_images]
    return scores


def _counts(cases: Iterable[Case]) -> dict[str, dict[str, int]]:
    """Numbers of subjects, images and sites by sequence."""
    subjects: Counter[str] = Counter()
    images: Counter[str] = Counter()
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
