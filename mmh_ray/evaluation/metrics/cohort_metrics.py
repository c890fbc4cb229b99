"""Computes the metrics of a cohort: all images of one method and sequence together."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from mmh_ray.evaluation.metrics.agreement import truth_error
from mmh_ray.evaluation.metrics.cohort import MethodCohort
from mmh_ray.evaluation.metrics.cohort_groups import person_groups, site_groups
from mmh_ray.evaluation.metrics.cohort_probes import LEAST_AGES, age_probes, site_probes, unet_probe
from mmh_ray.evaluation.metrics.label_metrics import Medians, site_label, spread_between_sites
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.metrics.segmentation import TISSUES
from mmh_ray.evaluation.probes.downstream import association
from mmh_ray.evaluation.statistics.metric_values import ValuesByMetric

_GRID = np.arange(-0.5, 2.06, 0.01)
"""Intensities at which the distributions of sites are compared if no person was scanned at two sites.

The brain's 1st percentile is 0, its 99th is 1.
"""

_UNLABELLED = Medians(table="", csf=np.nan, gm=np.nan, wm=np.nan)


def cohort_metrics(cohort: MethodCohort, seed: int, runner: MetricRunner) -> ValuesByMetric:
    """All available metrics of the cohort, by name."""
    metrics: ValuesByMetric = {}
    metrics |= _error_to_truth(cohort)
    metrics |= _w1_of_pooled_sites(cohort)
    metrics |= _associations(cohort)
    metrics |= _label_spread(cohort)
    metrics |= site_probes(cohort, seed, runner)
    metrics |= site_groups(cohort, seed, runner)
    metrics |= unet_probe(cohort, seed, runner)
    metrics |= person_groups(cohort, seed, runner)
    metrics |= age_probes(cohort, seed, runner)
    return metrics


def w1_between_sites(distributions: np.ndarray, sites: np.ndarray) -> float:
    """Mean over pairs of sites of ``∫ |Fa(x) − Fb(x)| dx``, F the site's mean distribution function.

    NaN for a single site.
    """
    site_means = []
    for site in np.unique(sites):
        of_site = distributions[sites == site]
        site_means.append(of_site.mean(axis=0))
    step = float(_GRID[1] - _GRID[0])
    distances = []
    for one, other in combinations(site_means, 2):
        difference = np.abs(one - other)
        distances.append(difference.sum() * step)
    if not distances:
        return float("nan")
    return float(np.mean(distances))


def _error_to_truth(cohort: MethodCohort) -> ValuesByMetric:
    joints = [inputs.joint for inputs in cohort.inputs]
    known_joints = [joint for joint in joints if joint is not None]
    if not known_joints:
        return {}
    has_truth = np.array([joint is not None for joint in joints])
    errors = np.full(len(joints), np.nan)
    errors[has_truth] = truth_error(known_joints).per_image
    voxels = np.full(len(joints), np.nan)
    voxels[has_truth] = [joint.voxels.sum() for joint in known_joints]
    metric = cohort.metric(
        np.stack([errors, voxels], axis=1), reduce=_root_mean_square, labels=cohort.sites, shown=errors
    )
    return {"truth_nrmse": metric}


def _root_mean_square(values: np.ndarray, _labels: np.ndarray) -> float:
    """Of errors, weighted by voxel counts; ``values`` ``(n, 2)`` holds both."""
    errors = values[:, 0]
    voxels = values[:, 1]
    return float(np.sqrt(np.average(errors**2, weights=voxels)))


def _w1_of_pooled_sites(cohort: MethodCohort) -> ValuesByMetric:
    """W1 between the mean distributions of sites, for cohorts without travelers and without a target."""
    has_target = any("w1" in image.values for image in cohort.images)
    if cohort.has_travelers or has_target or not cohort.inputs:
        return {}
    nothing = np.empty(0)
    quantiles = {"w1": [inputs.quantiles for inputs in cohort.inputs]}
    for tissue in TISSUES:
        of_tissue = [inputs.tissue_quantiles.get(tissue, nothing) for inputs in cohort.inputs]
        quantiles[f"w1_{tissue.lower()}"] = of_tissue
    metrics = {}
    for name, quantiles_of_images in quantiles.items():
        distributions = np.stack([_distribution(of_image) for of_image in quantiles_of_images])
        metric = cohort.metric(distributions, reduce=w1_between_sites, labels=cohort.sites)
        if len(set(metric.labels or ())) > 1:
            metrics[name] = metric
    return metrics


def _distribution(quantiles: np.ndarray) -> np.ndarray:
    """Distribution function at the points of ``_GRID``; float32 to save memory; NaN without quantiles."""
    if not quantiles.size:
        return np.full(_GRID.size, np.nan, np.float32)
    counts_below = np.searchsorted(np.sort(quantiles), _GRID, side="right")
    return (counts_below / quantiles.size).astype(np.float32)


def _label_spread(cohort: MethodCohort) -> ValuesByMetric:
    """How much the labelled tissues differ between sites; images without label maps are left out."""
    if not cohort.inputs:
        return {}
    medians = [inputs.medians or _UNLABELLED for inputs in cohort.inputs]
    labels = tuple(site_label(image.table, site) for image, site in zip(medians, cohort.sites, strict=True))
    ranges = [image.fluid_to_white for image in medians]
    grey = np.column_stack([[image.gm for image in medians], ranges])
    white = np.column_stack([[image.wm for image in medians], ranges])
    metrics = {}
    for name, values in {"label_spread_gm": grey, "label_spread_wm": white}.items():
        metric = cohort.metric(values, reduce=spread_between_sites, labels=labels)
        if metric.units:
            metrics[name] = metric
    return metrics


def _associations(cohort: MethodCohort) -> ValuesByMetric:
    """Association of the grey matter share with age and sex, which harmonization must preserve."""
    if not cohort.inputs:
        return {}
    metrics = {}
    for name, trait in {"age_association": cohort.ages, "sex_association": cohort.sexes}.items():
        values = np.stack([cohort.grey_matter_shares, trait], axis=1)
        metric = cohort.metric(values, reduce=_association, labels=cohort.sites)
        if len(set(metric.subjects)) >= LEAST_AGES and np.ptp(metric.values[:, 1]) > 0:
            metrics[name] = metric
    return metrics


def _association(values: np.ndarray, sites: np.ndarray) -> float:
    shares = values[:, 0]
    trait = values[:, 1].tolist()
    return association(shares, trait, sites.tolist())
