"""Compares two outputs of one person and method: from two sites, or test and retest at one site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from mmh_ray.evaluation.inputs.scans import on_one_grid
from mmh_ray.evaluation.metrics import preservation
from mmh_ray.evaluation.metrics.agreement import psnr, ssim, w1
from mmh_ray.evaluation.metrics.label_metrics import median_change
from mmh_ray.evaluation.metrics.outputs import MethodOutput
from mmh_ray.evaluation.metrics.per_image import MetricFunctions, run_all
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.metrics.segmentation import TISSUES, mean_dice, mean_volume_error

BETWEEN_SITES = ("psnr", "ssim", "w1", "mae", "w1_csf", "w1_gm", "w1_wm", "tissue_dice", "tissue_volume_error")
"""Metrics of two images of one person from two sites."""

RETEST = "retest_distance"
"""Metric of two images of one person from one site."""

LABEL_RETEST = "label_retest"
"""Metric of two images of one person from one site, in labelled tissues."""

IDENTITY = "identity"
"""Metric of a scan at the target site and a method's output of it."""

PAIR_METRICS = (*BETWEEN_SITES, RETEST, LABEL_RETEST, IDENTITY)


@dataclass(frozen=True)
class PairMetrics:
    """The metrics by name of two images of one person, for one method; unavailable metrics are left out."""

    image_ids: tuple[str, str]
    subject: str
    method: str
    values: Mapping[str, float]


def measure_pair(a: MethodOutput, b: MethodOutput, runner: MetricRunner) -> PairMetrics:
    """:data:`BETWEEN_SITES` for two sites, or :data:`RETEST` and :data:`LABEL_RETEST` for one site.

    Voxelwise metrics are left out if the two grids differ.
    """
    first = a.scan.record
    second = b.scan.record
    both = _common_mask(a, b)
    if both is None:
        text = "no PSNR, SSIM, MAE or Dice between two images of one person: their grids differ"
        runner.notes[text].append(f"{first.image_id} and {second.image_id}")
    functions = _retest(a, b, both) if first.site == second.site else _between_sites(a, b, both)
    values = run_all(functions, first.image_id, runner)
    return PairMetrics((first.image_id, second.image_id), first.subject, a.method, values)


def _common_mask(a: MethodOutput, b: MethodOutput) -> np.ndarray | None:
    """Voxels that are brain in both images; None if there are none or the grids differ."""
    if not on_one_grid(a.scan, b.scan):
        return None
    both = a.scan.mask & b.scan.mask
    return both if both.any() else None


def _retest(a: MethodOutput, b: MethodOutput, both: np.ndarray | None) -> MetricFunctions:
    functions: MetricFunctions = {}
    if both is not None:
        functions[RETEST] = partial(preservation.distance, a.image, b.image, both)
    if a.medians is not None and b.medians is not None:
        functions[LABEL_RETEST] = partial(median_change, a.medians, b.medians)
    return functions


def _between_sites(a: MethodOutput, b: MethodOutput, both: np.ndarray | None) -> MetricFunctions:
    functions: MetricFunctions = {"w1": partial(w1, a.scaled[a.scan.mask], b.scaled[b.scan.mask])}
    if both is not None:
        functions["psnr"] = partial(psnr, a.scaled, b.scaled, both)
        functions["ssim"] = partial(ssim, a.scaled, b.scaled, both)
        functions["mae"] = partial(preservation.mae, a.scaled, b.scaled, both)
    if a.labels is None or b.labels is None:
        return functions
    for label, tissue in enumerate(TISSUES, start=1):
        intensities_a = a.scaled[a.labels == label]
        intensities_b = b.scaled[b.labels == label]
        if intensities_a.size and intensities_b.size:
            functions[f"w1_{tissue.lower()}"] = partial(w1, intensities_a, intensities_b)
    if both is not None:
        functions["tissue_volume_error"] = partial(mean_volume_error, a.labels, b.labels)
        functions["tissue_dice"] = partial(mean_dice, a.labels * both, b.labels * both)
    return functions
