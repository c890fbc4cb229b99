"""Gathers one method's images of a sequence, and computes their metrics and the data of pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mmh_ray.errors import DataError
from mmh_ray.evaluation.baselines.feature_baselines import FEATURE_METHODS, harmonize_features, traits
from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.evaluation.metrics.cohort import MethodCohort
from mmh_ray.evaluation.metrics.cohort_inputs import CohortInputs
from mmh_ray.evaluation.metrics.cohort_metrics import cohort_metrics
from mmh_ray.evaluation.metrics.per_image import IMAGE_METRICS, ImageMetrics
from mmh_ray.evaluation.metrics.per_pair import PAIR_METRICS, PairMetrics
from mmh_ray.evaluation.metrics.registry import BEST_KNOWN, RAW
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.metrics.scoring import CaseMetrics
from mmh_ray.evaluation.metrics.target import TARGET_METRICS
from mmh_ray.evaluation.metrics.training import TrainingImage
from mmh_ray.evaluation.probes import clustering
from mmh_ray.evaluation.statistics.metric_values import MetricValues, ValuesByMetric

LEAST_MAPPED = 8
"""Minimum number of images for a map of their features."""
MOST_MAPPED = 1000
"""Maximum number of images on a map; from more, this many are chosen evenly."""
LEAST_UMAP = 30
"""Minimum number of images for a UMAP, which uses 15 neighbours."""
HISTOGRAM_POINTS = 4096
"""Points of a site's mean quantile function in the picture of histograms."""


@dataclass(frozen=True, eq=False)
class MethodResults:
    """One method's results from all cases.

    Attributes
    ----------
    images, pairs:
        Sorted by image name.
    inputs, raw_inputs:
        Inputs of the cohort metrics, for each of ``images`` and for its raw scan.
    """

    images: list[ImageMetrics]
    pairs: list[PairMetrics]
    inputs: list[CohortInputs]
    raw_inputs: list[CohortInputs]


class FeatureMap(NamedTuple):
    """Coordinates ``(n, 2)`` of images on a map, with their sites and subjects."""

    points: np.ndarray
    sites: tuple[str, ...]
    subjects: tuple[str, ...]


class PictureData(NamedTuple):
    """Data of a method's pictures: maps by kind (``map``, ``umap``), and the mean quantile function of each site."""

    maps: Mapping[str, FeatureMap]
    quantiles: Mapping[str, np.ndarray]


def is_pictured(method: str) -> bool:
    """True for raw, the best known simple method, and every archive."""
    return method in (RAW, BEST_KNOWN) or method not in (*BASELINES, *FEATURE_METHODS)


def gather(cases: Iterable[CaseMetrics], method: str) -> MethodResults:
    """Gather the method's results, sorted by image name; only one case is in memory at a time."""
    rows: list[tuple[ImageMetrics, CohortInputs, CohortInputs]] = []
    pairs: list[PairMetrics] = []
    for case in cases:
        pairs += [pair for pair in case.pairs if pair.method == method]
        for image in case.images:
            if image.method == method:
                image_id = image.record.image_id
                rows.append((image, case.cohort_inputs[method, image_id], case.cohort_inputs[RAW, image_id]))
    rows.sort(key=lambda row: row[0].record.image_id)
    pairs.sort(key=lambda pair: pair.image_ids)
    return MethodResults(
        images=[image for image, _, _ in rows],
        pairs=pairs,
        inputs=[inputs for _, inputs, _ in rows],
        raw_inputs=[raw_inputs for _, _, raw_inputs in rows],
    )


def mean_metrics(results: MethodResults) -> ValuesByMetric:
    """The metrics that are means over images or over pairs of images."""
    metrics: ValuesByMetric = {}
    for name in (*IMAGE_METRICS, *TARGET_METRICS):
        measured = [image for image in results.images if name in image.values]
        if measured:
            metrics[name] = MetricValues(
                values=np.array([image.values[name] for image in measured], dtype=np.float64),
                units=tuple(image.record.image_id for image in measured),
                subjects=tuple(image.record.subject for image in measured),
            )
    for name in PAIR_METRICS:
        measured_pairs = [pair for pair in results.pairs if name in pair.values]
        if measured_pairs:
            metrics[name] = MetricValues(
                values=np.array([pair.values[name] for pair in measured_pairs], dtype=np.float64),
                units=tuple(" ".join(pair.image_ids) for pair in measured_pairs),
                subjects=tuple(pair.subject for pair in measured_pairs),
            )
    return metrics


def shares_of_raw(metrics: ValuesByMetric, raw_metrics: ValuesByMetric) -> ValuesByMetric:
    """W1 to a target as a share of the raw scans' W1 (the ratio of two means); empty without a target."""
    if "w1_n4" not in metrics or "w1_n4" not in raw_metrics:
        return {}
    shares = {}
    for name in ("w1", "w1_n4"):
        metric = metrics[name]
        raw_values = raw_metrics[name].only(metric.units).values  # raw has every image that a method has
        values = np.stack([metric.values, raw_values], axis=1)
        share_per_unit = metric.values / raw_values
        shares[f"{name}_of_raw"] = replace(
            metric, values=values, reduce=_ratio_of_means, labels=metric.units, shown=share_per_unit
        )
    return shares


def _ratio_of_means(values: np.ndarray, _labels: np.ndarray) -> float:
    """Of the two columns of ``(n, 2)`` values."""
    numerator, denominator = values.mean(axis=0)
    return float(numerator / denominator)


def metrics_and_pictures(
    method: str, results: MethodResults, training: Sequence[TrainingImage], seed: int, runner: MetricRunner
) -> tuple[ValuesByMetric, PictureData]:
    """Compute the cohort metrics, and the data of pictures.

    Parameters
    ----------
    method, results:
        A method and its results; a method of ``FEATURE_METHODS`` takes the results of raw.
    training:
        Training images, which feature methods are fitted on.

    Raises
    ------
    DataError
        If features cannot be harmonized.
    """
    feature_names = sorted(results.raw_inputs[0].features)
    raw_features = _matrix([inputs.features for inputs in results.raw_inputs], feature_names)
    if method in FEATURE_METHODS:
        arguments = (method, raw_features, results.images, training, feature_names)
        features = runner.run(method, method, _adjusted_features, *arguments)
        if features is None:
            raise DataError("; ".join(runner.sentences()), "features that can be adjusted", "Add training subjects.")
        inputs = []  # a feature method makes no images
    else:
        features = _matrix([inputs.features for inputs in results.inputs], feature_names)
        inputs = results.inputs
    raw_slices = [image.slices for image in results.raw_inputs if image.slices is not None]
    has_slices = bool(inputs) and len(raw_slices) == len(results.raw_inputs)
    cohort = MethodCohort(
        method=method,
        images=results.images,
        features=features,
        raw_features=raw_features,
        inputs=inputs,
        raw_slices=np.stack(raw_slices) if has_slices else None,
    )
    metrics = cohort_metrics(cohort, seed, runner)
    maps = _feature_maps(cohort, seed, runner) if is_pictured(method) else {}
    return metrics, PictureData(maps, _mean_quantiles(cohort))


def _feature_maps(cohort: MethodCohort, seed: int, runner: MetricRunner) -> dict[str, FeatureMap]:
    kinds = {"map": (LEAST_MAPPED, clustering.tsne), "umap": (LEAST_UMAP, clustering.umap)}
    count = len(cohort.images)
    rows = np.unique(np.linspace(0, count - 1, min(count, MOST_MAPPED)).round().astype(int))
    features = clustering.standardise(cohort.features)[rows]
    sites = tuple(cohort.images[row].record.site for row in rows)
    subjects = tuple(cohort.images[row].record.subject for row in rows)
    maps = {}
    for kind, (least, function) in kinds.items():
        if count < least:
            continue
        points = runner.run(function.__name__, cohort.method, function, features, seed)
        if points is not None:
            maps[kind] = FeatureMap(points, sites, subjects)
    return maps


def _mean_quantiles(cohort: MethodCohort) -> dict[str, np.ndarray]:
    """By site, the mean quantile function of scaled brain intensities."""
    if not cohort.inputs:
        return {}
    quantiles_by_site: dict[str, list[np.ndarray]] = defaultdict(list)
    for site, inputs in zip(cohort.sites, cohort.inputs, strict=True):
        quantiles_by_site[site].append(inputs.quantiles)
    return {site: _dense(np.mean(quantiles, axis=0)) for site, quantiles in sorted(quantiles_by_site.items())}


def _dense(quantiles: np.ndarray) -> np.ndarray:
    probabilities = np.linspace(0, 1, quantiles.size)
    dense_probabilities = np.linspace(0, 1, HISTOGRAM_POINTS)
    return np.interp(dense_probabilities, probabilities, quantiles)


def _adjusted_features(
    method: str,
    raw_features: np.ndarray,
    images: Sequence[ImageMetrics],
    training: Sequence[TrainingImage],
    feature_names: Sequence[str],
) -> np.ndarray:
    """Features of the scored images, harmonized by a feature method that is fitted on training images only."""
    training_features = _matrix([image.features for image in training], feature_names)
    records = [image.record for image in training] + [image.record for image in images]
    is_training = np.arange(len(records)) < len(training)
    features = np.concatenate([training_features, raw_features])
    sites = [record.site for record in records]
    adjusted = harmonize_features(method, features, sites, is_training, traits(records, is_training))
    return adjusted[len(training) :]


def _matrix(features: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """``(n, F)``; 0 where an image lacks the feature."""
    rows = []
    for of_image in features:
        rows.append([of_image.get(name, 0.0) for name in names])
    return np.nan_to_num(np.array(rows, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
