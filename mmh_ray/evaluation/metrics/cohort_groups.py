"""Measures how one method's images cluster: by site, which is bad, and by person, which is good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mmh_ray.evaluation.metrics.cohort import MethodCohort
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.probes import clustering
from mmh_ray.evaluation.statistics.metric_values import ValuesByMetric


def site_groups(cohort: MethodCohort, seed: int, runner: MetricRunner) -> ValuesByMetric:
    """How images cluster by site, in their features and in their style vectors."""
    sites = cohort.sites
    site_count = len(set(sites))
    if site_count < 2 or len(sites) < 2 * site_count:
        return {}
    standardised = replace(cohort, features=clustering.standardise(cohort.features))
    metrics = _gathering("site", standardised, sites, clustering.PERPLEXITY, seed, runner)
    styles = cohort.styles
    if styles is not None:
        name = "site_silhouette_style"
        values = runner.run(name, cohort.method, clustering.silhouettes, clustering.standardise(styles), sites)
        metrics[name] = cohort.metric(values)
    return metrics


def person_groups(cohort: MethodCohort, seed: int, runner: MetricRunner) -> ValuesByMetric:
    """How images cluster by person, in features of the voxels that are brain in every scan."""
    everybody = _in_common_part(cohort)
    images_of = Counter(everybody.subjects)
    several = [count for count in images_of.values() if count > 1]
    if len(several) < 2:
        return {}
    rows = [row for row, subject in enumerate(everybody.subjects) if images_of[subject] > 1]
    seen_again = everybody.only(rows, everybody.features[rows])
    perplexity = max(2, round(float(np.median(several))) - 1)
    metrics = _gathering("subject", seen_again, seen_again.subjects, perplexity, seed, runner)
    if everybody.has_travelers:
        name = "subject_nearest"
        function = clustering.same_subject_nearest
        values = runner.run(name, cohort.method, function, everybody.features, everybody.subjects, everybody.sites)
        metrics[name] = everybody.metric(values)
    return metrics


def _in_common_part(cohort: MethodCohort) -> MethodCohort:
    """The images that have features of the common mask, with these, standardised; empty for a feature method."""
    rows = []
    features = []
    for row, inputs in enumerate(cohort.inputs):
        if inputs.common_features is not None:
            rows.append(row)
            features.append(list(inputs.common_features.values()))
    if not rows:
        return replace(cohort, images=(), inputs=())
    return cohort.only(rows, clustering.standardise(np.array(features)))


def _gathering(
    prefix: str, cohort: MethodCohort, labels: tuple[str, ...], perplexity: int, seed: int, runner: MetricRunner
) -> ValuesByMetric:
    """How images with standardised features cluster by label; metrics are named ``PREFIX_silhouette`` and so on."""
    features = cohort.features
    label_array = np.asarray(labels)
    label_count = len(np.unique(label_array))
    functions: dict[str, Callable[[], np.ndarray]] = {
        "silhouette": lambda: clustering.silhouettes(features, label_array),
        "adjusted_rand": lambda: clustering.clusters_of(features, label_count, seed),
        "lisi": lambda: clustering.lisi(features, label_array, perplexity),
        "kbet": lambda: clustering.kbet(features, label_array),
    }
    metrics: ValuesByMetric = {}
    for ending, function in functions.items():
        name = f"{prefix}_{ending}"
        values = runner.run(name, cohort.method, function)
        if values is None:
            continue
        if ending == "adjusted_rand":
            # k-means runs once on the whole cohort; only the subjects vary between bootstrap draws
            metrics[name] = cohort.metric(values, reduce=clustering.agreement, labels=labels)
        else:
            metrics[name] = cohort.metric(values)
    return metrics
