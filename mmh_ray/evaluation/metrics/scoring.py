"""Scores one case, a subject's scans of one sequence, with every method; the results are small numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import (
    Case,
    Scan,
    ScoringSettings,
    Truth,
    on_one_grid,
    read_labels,
    read_output,
    read_scan,
    read_truth,
)
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.cohort_inputs import CohortInputs, cohort_inputs
from mmh_ray.evaluation.metrics.outputs import MethodOutput, make_output
from mmh_ray.evaluation.metrics.per_image import ImageMetrics, measure_image
from mmh_ray.evaluation.metrics.per_pair import PairMetrics, measure_pair
from mmh_ray.evaluation.metrics.preservation import dissimilarity_map
from mmh_ray.evaluation.metrics.registry import RAW, REFERENCE, TRUTH
from mmh_ray.evaluation.metrics.runner import EvaluationLog, MetricRunner
from mmh_ray.evaluation.metrics.target import TargetComparison
from mmh_ray.imaging.slices import middle_slice


@dataclass
class CaseMetrics:
    """Metrics of single images and pairs for all methods, and the inputs of cohort metrics by method and image."""

    images: list[ImageMetrics] = field(default_factory=list)
    pairs: list[PairMetrics] = field(default_factory=list)
    cohort_inputs: dict[tuple[str, str], CohortInputs] = field(default_factory=dict)


@dataclass
class CasePictures:
    """Middle slices of a pictured case; empty for any other.

    Attributes
    ----------
    sites:
        Sites of the case's scans.
    slices:
        By method, ``truth`` and ``reference``, one per site; methods that lack a site are left out.
    maps:
        Slices of :func:`~mmh_ray.evaluation.metrics.preservation.dissimilarity_map` by method, one per site.
    """

    sites: list[str] = field(default_factory=list)
    slices: dict[str, list[np.ndarray]] = field(default_factory=dict)
    maps: dict[str, list[np.ndarray]] = field(default_factory=dict)


@dataclass
class CaseScores:
    """All results of one case."""

    metrics: CaseMetrics = field(default_factory=CaseMetrics)
    pictures: CasePictures = field(default_factory=CasePictures)
    log: EvaluationLog = field(default_factory=EvaluationLog)


def score_case(case: Case, settings: ScoringSettings) -> CaseScores:
    """Apply every method to a subject's scans and measure; only one method's images are in memory at a time."""
    scores = CaseScores()
    truth = _read_truth(case, settings, scores.log)
    target = None
    if case.reference is not None:
        reference = _read_scan(case.reference, settings, truth, scores.log)
        if reference is None:
            return scores  # nothing to compare with; the log holds the reason
        target = TargetComparison(reference, settings.target_cohorts.get(case.sequence))
    scans = []
    for record in case.records:
        scan = _read_scan(record, settings, truth, scores.log)
        if scan is not None and _is_comparable(scan, target, scores.log):
            scans.append(scan)
    raw_labels: dict[str, np.ndarray | None] = {}
    for method in settings.methods:  # raw comes first, because the others are compared with its tissues
        outputs = []
        for scan, image in _apply(method, scans, settings, truth, scores.log):
            outputs.append(make_output(method, scan, image, scores.log.runner))
        if method == RAW:
            raw_labels = {output.scan.record.image_id: output.labels for output in outputs}
        _measure(outputs, truth, raw_labels, target, settings, scores)
        if target is not None and method != TRUTH:
            _measure_identity(method, target, settings, scores)
        if case.is_pictured and len(outputs) == len(scans):
            _add_pictures(method, outputs, scores.pictures)
    if case.is_pictured:
        scores.pictures.sites = [scan.record.site for scan in scans]
        if truth is not None:
            scores.pictures.slices[TRUTH] = [_scaled_slice(truth.noisefree, scan) for scan in scans]
        if target is not None:
            reference_slice = _scaled_slice(target.reference.volume.data, target.reference)
            scores.pictures.slices[REFERENCE] = [reference_slice] * len(scans)
    return scores


def _is_comparable(scan: Scan, target: TargetComparison | None, log: EvaluationLog) -> bool:
    """Whether a scan has the grid of the reference, if there is one; a scan on another grid is logged."""
    if target is None or on_one_grid(scan, target.reference):
        return True
    received = f"{scan.record.uri}: another grid than {target.reference.record.uri}"
    log.add_unusable(RAW, scan.record.image_id, DataError(received, "scans on one grid", "Resample one of them."))
    return False


def _measure(
    outputs: list[MethodOutput],
    truth: Truth | None,
    raw_labels: Mapping[str, np.ndarray | None],
    target: TargetComparison | None,
    settings: ScoringSettings,
    scores: CaseScores,
) -> None:
    """Add the metrics of one method's images, and the inputs of the cohort metrics.

    With a target, every image is compared with the target; without one, images are compared in pairs.
    """
    runner = scores.log.runner
    for output in outputs:
        image_id = output.scan.record.image_id
        labels_of_raw = raw_labels.get(image_id)
        measured = measure_image(output, truth, runner, labels_of_raw)
        inputs = cohort_inputs(output, truth, settings, runner, labels_of_raw)
        if target is not None:
            to_target = target.measure(output, inputs.style, truth, runner)
            measured = replace(measured, values={**measured.values, **to_target})
        scores.metrics.images.append(measured)
        scores.metrics.cohort_inputs[output.method, image_id] = inputs
    if target is None:
        for a, b in itertools.combinations(outputs, 2):
            scores.metrics.pairs.append(measure_pair(a, b, runner))


def _measure_identity(method: str, target: TargetComparison, settings: ScoringSettings, scores: CaseScores) -> None:
    """Measure how the method changes the reference; outputs of the target's own scans may be missing."""
    record = target.reference.record
    for _, image in _apply(method, [target.reference], settings, None, scores.log):
        values = target.identity(image, scores.log.runner)
        # a pair of the reference and the method's output of it
        pair = PairMetrics((record.image_id, record.image_id), record.subject, method, values)
        scores.metrics.pairs.append(pair)


def _apply(
    method: str, scans: list[Scan], settings: ScoringSettings, truth: Truth | None, log: EvaluationLog
) -> Iterator[tuple[Scan, np.ndarray]]:
    """Yield every scan with the method's output of it; an unusable output is logged."""
    for scan in scans:
        record = scan.record
        baseline = settings.baselines.get(record.sequence, {}).get(method)
        if baseline is not None:
            image = scan.corrected if baseline.bias_corrected else scan.volume.data
            yield scan, baseline.apply(image, scan.mask)
        elif method == TRUTH and truth is not None:
            yield scan, truth.noisefree
        elif method in record.outputs:
            try:
                yield scan, read_output(record.outputs[method], scan)
            except DataError as error:
                log.add_unusable(method, record.image_id, error)


def _read_scan(record: ImageRecord, settings: ScoringSettings, truth: Truth | None, log: EvaluationLog) -> Scan | None:
    try:
        scan = read_scan(record, settings.iterations, truth)
    except DataError as error:
        log.add_unusable(RAW, record.image_id, error)
        return None
    return _with_label_map(scan, settings, log.runner)


def _with_label_map(scan: Scan, settings: ScoringSettings, runner: MetricRunner) -> Scan:
    """Add the label map, if there is one; if it cannot be used, leave a note and score the scan without it."""
    if scan.record.labels_uri is None:
        return scan
    image_id = scan.record.image_id
    label_map = runner.run("labels", image_id, read_labels, scan, settings.label_table)
    if label_map is None:
        return scan
    unknown_voxels = sum(label_map.unknown.values())
    for remark in label_map.remarks():
        detail = f"{image_id}, {unknown_voxels} unknown voxels" if unknown_voxels else image_id
        runner.notes[remark].append(detail)
    return replace(scan, label_map=label_map)


def _read_truth(case: Case, settings: ScoringSettings, log: EvaluationLog) -> Truth | None:
    if settings.truth is None:
        return None
    try:
        session = None if case.reference is None else case.reference.session
        return read_truth(settings.truth, case.subject, case.sequence, session)
    except DataError as error:
        log.notes.append(f"no truth for sub-{case.subject} {case.sequence}: {error}")
        return None


def _add_pictures(method: str, outputs: list[MethodOutput], pictures: CasePictures) -> None:
    slices = []
    maps = []
    for output in outputs:
        scan = output.scan
        dissimilarity = dissimilarity_map(output.image, scan.volume.data, scan.mask)
        slices.append(middle_slice(output.scaled, scan.mask, scan.volume.affine))
        maps.append(middle_slice(dissimilarity, scan.mask, scan.volume.affine))
    pictures.slices[method] = slices
    pictures.maps[method] = maps


def _scaled_slice(image: np.ndarray, scan: Scan) -> np.ndarray:
    """Middle slice of an image on a scan's grid, scaled by its percentiles in the scan's brain."""
    scaled = scale_by_percentiles(image, scan.mask)
    return middle_slice(scaled, scan.mask, scan.volume.affine)
