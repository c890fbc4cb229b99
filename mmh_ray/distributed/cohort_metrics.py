"""Computes the metrics of whole cohorts on Ray, in a task per sequence and method.

A task gathers the results of single images in the object store and leaves its metrics there. Except for the points of
scatter plots, the results that return to the driver do not grow with the cohort.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import ray

from mmh_ray.config import EvaluateConfig
from mmh_ray.distributed.task_pool import map_unordered
from mmh_ray.evaluation.baselines.feature_baselines import FEATURE_METHODS
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.metrics.label_metrics import LABEL_METRICS
from mmh_ray.evaluation.metrics.method_metrics import (
    PictureData,
    gather,
    mean_metrics,
    metrics_and_pictures,
    shares_of_raw,
)
from mmh_ray.evaluation.metrics.registry import METRICS, OURS, RAW, floor_of
from mmh_ray.evaluation.metrics.runner import EvaluationLog, MetricRunner
from mmh_ray.evaluation.metrics.training import TrainingImage
from mmh_ray.evaluation.report.files import images_table
from mmh_ray.evaluation.statistics.metric_values import MetricValues, ValuesByMetric
from mmh_ray.evaluation.statistics.summary import Entry, difference, entry, interval, site_means

Key = tuple[str, str]
"""Sequence and method."""


@dataclass(frozen=True)
class StoredCohort:
    """The input of a cohort's metrics.

    Attributes
    ----------
    methods:
        Methods with any image, by sequence.
    cases:
        References to every case's :class:`~mmh_ray.evaluation.metrics.scoring.CaseMetrics`, by sequence.
    training:
        Training images by sequence.
    """

    methods: Mapping[str, Sequence[str]]
    cases: Mapping[str, Sequence[ray.ObjectRef]]
    training: Mapping[str, Sequence[TrainingImage]]
    config: EvaluateConfig


class MethodMetrics(NamedTuple):
    """Images (none for a method that makes none) and metrics of a method, kept in the object store."""

    records: list[ImageRecord]
    metrics: ValuesByMetric


class MethodSummary(NamedTuple):
    """The part of `evaluation.json` about one method and sequence.

    Attributes
    ----------
    entries:
        Entry by metric.
    differences:
        Entry by metric of ours minus this method.
    labels:
        ``{site: {metric: mean, "n": images}}`` of the tissues in label maps; empty without label maps.
    """

    entries: dict[str, Entry]
    differences: dict[str, Entry]
    labels: dict[str, dict[str, float | int]]


@dataclass
class Summary:
    """The results of all methods.

    Attributes
    ----------
    entries, differences:
        ``{method: {sequence: {metric: entry}}}`` of the method's metrics, and of ours minus the method.
    tables:
        References to the tables of images' metrics.
    labels:
        ``{sequence: {method: {site: {metric: mean, "n": images}}}}`` of the tissues in label maps.
    """

    entries: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    differences: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    tables: dict[Key, ray.ObjectRef] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))


def measure_cohort(cohort: StoredCohort, log: EvaluationLog) -> tuple[dict[Key, ray.ObjectRef], dict[Key, PictureData]]:
    """References to the :class:`MethodMetrics` of every method, and the data for its pictures."""
    keys = [(sequence, method) for sequence, methods in cohort.methods.items() for method in methods]
    for sequence in cohort.cases:
        if cohort.training.get(sequence):
            keys += [(sequence, method) for method in FEATURE_METHODS]
    metrics: dict[Key, ray.ObjectRef] = {}
    pictures: dict[Key, PictureData] = {}
    for done in map_unordered(_measure_method, keys, (cohort,), "Comparing", "methods", keep=True):
        if isinstance(done.result, Exception):
            sequence, method = done.item
            log.notes.append(f"{sequence}: no metrics of {method}: {done.result}")
            continue
        assert done.kept is not None
        metrics[done.item] = done.kept
        pictures[done.item], runner = done.result
        log.runner.merge(runner)
    return metrics, pictures


def summarise(metrics: Mapping[Key, ray.ObjectRef], config: EvaluateConfig) -> Summary:
    """Values, differences and tables of all methods."""
    summaries: dict[Key, MethodSummary] = {}
    tables: dict[Key, ray.ObjectRef] = {}
    for done in map_unordered(_summarise_method, sorted(metrics), (metrics, config), "Intervals", "methods", keep=True):
        if isinstance(done.result, Exception):
            raise done.result
        assert done.kept is not None
        summaries[done.item] = done.result
        tables[done.item] = done.kept
    summary = Summary()
    for key in sorted(summaries):  # independent of the order in which tasks ended
        sequence, method = key
        summary.entries[method][sequence] = summaries[key].entries
        if summaries[key].labels:
            summary.labels[sequence][method] = summaries[key].labels
        if summaries[key].differences:
            summary.differences[method][sequence] = summaries[key].differences
        if method not in FEATURE_METHODS:
            summary.tables[key] = tables[key]
    return summary


def entries_of(
    metrics: ValuesByMetric, ours: ValuesByMetric, config: EvaluateConfig
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """JSON entries of a method's metrics, and of ours minus the method's.

    Ratios with 1 as their best value are compared by their distances to 1.
    """
    entries = {}
    differences = {}
    for name, metric in metrics.items():
        method_entry = entry(interval(metric, config.draws, config.seed), metric.guessed)
        if method_entry is not None:
            entries[name] = method_entry
        if name not in ours:
            continue
        floor = floor_of(name, sites=len(set(metric.strata or ())))
        judged_ours = _judged(name, ours[name])
        judged = _judged(name, metric)
        paired = difference(judged_ours, judged, config.draws, config.seed, floor)
        difference_entry = None if paired is None else entry(paired)
        if difference_entry is not None:
            differences[name] = difference_entry
    return entries, differences


def _measure_method(key: Key, cohort: StoredCohort) -> tuple[tuple[PictureData, MetricRunner], MethodMetrics]:
    """Measure a method; if its cohort metrics fail, the metrics of single images are kept."""
    sequence, method = key
    is_on_features = method in FEATURE_METHODS
    cases = (ray.get(reference) for reference in cohort.cases[sequence])  # one at a time in memory
    results = gather(cases, RAW if is_on_features else method)
    records: list[ImageRecord] = []
    metrics: ValuesByMetric = {}
    if not is_on_features:
        records = [image.record for image in results.images]
        metrics = mean_metrics(results)
    pictures = PictureData({}, {})
    runner = MetricRunner()
    training = cohort.training.get(sequence, ())
    try:
        more_metrics, pictures = metrics_and_pictures(method, results, training, cohort.config.seed, runner)
        metrics |= more_metrics
    except Exception as error:  # a probe's library may raise anything
        if is_on_features:
            raise
        runner.notes[f"{sequence}: no cohort metrics, {error}"].append(method)
    return (pictures, runner), MethodMetrics(records, metrics)


def _summarise_method(
    key: Key, references: Mapping[Key, ray.ObjectRef], config: EvaluateConfig
) -> tuple[MethodSummary, Any]:
    """The summary of a method, and the table of its images' metrics."""
    sequence, method = key
    records, metrics = ray.get(references[key])
    if (sequence, RAW) in references:
        metrics = metrics | shares_of_raw(metrics, ray.get(references[sequence, RAW]).metrics)
    metrics_of_ours: ValuesByMetric = {}
    if method != OURS and (sequence, OURS) in references:
        metrics_of_ours = ray.get(references[sequence, OURS]).metrics
    entries, differences = entries_of(metrics, metrics_of_ours, config)
    sites = {record.image_id: record.site for record in records}
    label_metrics = {name: metrics[name] for name in LABEL_METRICS if name in metrics}
    summary = MethodSummary(entries, differences, site_means(label_metrics, sites))
    return summary, images_table(method, records, metrics)


def _judged(name: str, metric: MetricValues) -> MetricValues:
    """The values to compare: those of the metric, or their distances to 1."""
    if metric.reduce is not None:
        return metric
    return replace(metric, values=METRICS[name].judged(metric.values))
