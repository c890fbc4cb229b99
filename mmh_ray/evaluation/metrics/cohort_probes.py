"""Trains probes on one method's images: how well do they predict site, tissues and age?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmh_ray.evaluation.metrics.cohort import MethodCohort, probes_make_sense
from mmh_ray.evaluation.metrics.registry import RAW
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.probes.downstream import brain_age
from mmh_ray.evaluation.probes.result import ProbeResult
from mmh_ray.evaluation.probes.site import cnn_site_probe, pattern_site_probe, site_probe
from mmh_ray.evaluation.statistics.metric_values import ValuesByMetric

LEAST_AGES = 12
"""Minimum number of subjects of known age for the brain age probes."""


def site_probes(cohort: MethodCohort, seed: int, runner: MetricRunner) -> ValuesByMetric:
    """Balanced accuracy of every site probe."""
    if not probes_make_sense(image.record for image in cohort.images):
        return {}
    results: dict[str, ProbeResult | None] = {}
    results |= _retrained_and_frozen(
        "site_probe", site_probe, cohort.features, cohort.raw_features, cohort, seed, runner
    )
    slices = [inputs.slices for inputs in cohort.inputs if inputs.slices is not None]
    if cohort.raw_slices is not None and slices and len(slices) == len(cohort.inputs):
        results |= _retrained_and_frozen(
            "site_probe_cnn", cnn_site_probe, np.stack(slices), cohort.raw_slices, cohort, seed, runner
        )
    results |= _pattern_probe(cohort, runner)
    styles = cohort.styles
    if styles is not None:
        results["site_probe_style"] = runner.run(
            "site_probe_style", cohort.method, site_probe, styles, cohort.sites, cohort.subjects, seed
        )
    metrics = {}
    for name, result in results.items():
        if result is None:
            continue
        _note_training(name, result, cohort, runner)
        guessed = {"chance": result.chance, "chance_high": result.chance_high}
        metrics[name] = cohort.metric(result.correct, strata=cohort.sites, guessed=guessed)
    return metrics


def unet_probe(cohort: MethodCohort, seed: int, runner: MetricRunner) -> ValuesByMetric:
    """Scores at the other sites of a network that learned tissues at one site."""
    images = [inputs.tissue_slices for inputs in cohort.inputs if inputs.tissue_slices is not None]
    if not images or len(images) < len(cohort.images):
        return {}
    if not probes_make_sense(image.record for image in cohort.images):
        return {}
    from mmh_ray.evaluation.probes.segmentation_network import unet_transfer  # imports torch

    scores = runner.run("unet", cohort.method, unet_transfer, images, cohort.sites, cohort.subjects, seed)
    if scores is None:
        return {}
    return {"unet_dice": cohort.metric(scores[:, 0]), "unet_volume_error": cohort.metric(scores[:, 1])}


def age_probes(cohort: MethodCohort, seed: int, runner: MetricRunner) -> ValuesByMetric:
    """Error of brain age in years: cross-validated by subject, and also with the tested site left out."""
    ages = cohort.ages
    subjects_with_age = {subject for subject, age in zip(cohort.subjects, ages, strict=True) if np.isfinite(age)}
    if len(subjects_with_age) < LEAST_AGES:
        return {}
    sites_left_out: dict[str, tuple[str, ...] | None] = {"age_mae": None}
    if len(set(cohort.sites)) > 1:
        sites_left_out["age_mae_across_sites"] = cohort.sites
    metrics = {}
    for name, sites in sites_left_out.items():
        result = runner.run(name, cohort.method, brain_age, cohort.features, ages, cohort.subjects, sites, seed)
        if result is not None:
            metrics[name] = cohort.metric(result.errors, guessed={"chance": result.baseline})
    return metrics


def _retrained_and_frozen(
    name: str,
    probe: Callable[..., ProbeResult],
    images: np.ndarray,
    raw_images: np.ndarray,
    cohort: MethodCohort,
    seed: int,
    runner: MetricRunner,
) -> dict[str, ProbeResult | None]:
    """Results of a probe trained on the method's images, and trained on the raw images."""
    sites = cohort.sites
    subjects = cohort.subjects
    frozen_name = f"{name}_frozen"
    retrained = runner.run(name, cohort.method, probe, images, sites, subjects, seed)
    if cohort.method == RAW:  # its own images are the raw ones
        return {name: retrained, frozen_name: retrained}
    frozen = runner.run(frozen_name, cohort.method, probe, images, sites, subjects, seed, raw_images)
    return {name: retrained, frozen_name: frozen}


def _pattern_probe(cohort: MethodCohort, runner: MetricRunner) -> dict[str, ProbeResult | None]:
    """The matched filter, which needs grids of one shape."""
    details = [inputs.detail for inputs in cohort.inputs]
    if not details:
        return {}
    if len({detail.grid for detail in details}) > 1:
        runner.notes["no site_probe_pattern: the images' grids have different shapes"].append(cohort.method)
        return {}
    images = np.stack([detail.values for detail in details])
    name = "site_probe_pattern"
    return {name: runner.run(name, cohort.method, pattern_site_probe, images, cohort.sites, cohort.subjects)}


def _note_training(name: str, result: ProbeResult, cohort: MethodCohort, runner: MetricRunner) -> None:
    """Record how a probe's training ended, with a note if it did not converge."""
    if not result.trainings:
        return
    owner = f"{cohort.images[0].record.sequence} {cohort.method}"
    all_converged = all(training.converged for training in result.trainings)
    runner.trainings[f"{owner} {name}"] = {
        "epochs": max(training.epochs for training in result.trainings),
        "loss": max(training.loss for training in result.trainings),
        "train_accuracy": min(training.accuracy for training in result.trainings),
        "converged": all_converged,
    }
    if not all_converged:
        runner.notes[f"{name} did not converge on its training images: it may miss a site effect"].append(owner)
