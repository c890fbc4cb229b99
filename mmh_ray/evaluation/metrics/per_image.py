"""Measures one output of a method against its source scan, the truth and the label map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Truth, read_output
from mmh_ray.evaluation.metrics import preservation
from mmh_ray.evaluation.metrics.agreement import gradient_correlation, psnr, scale_by_percentiles, ssim, tissue_contrast
from mmh_ray.evaluation.metrics.label_metrics import LABEL_METRICS, label_metrics
from mmh_ray.evaluation.metrics.outputs import MethodOutput
from mmh_ray.evaluation.metrics.registry import AGAIN, RAW
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.metrics.segmentation import TISSUES, mean_dice, mean_volume_error

IMAGE_METRICS = (
    "psnr_truth",
    "ssim_truth",
    "gradient_correlation",
    "tissue_contrast",
    "dice_truth",
    "volume_error_truth",
    "lesion_preservation",
    "structural_dissimilarity",
    "hallucination",
    "noise",
    "smoothness_mm",
    "gm_share",
    "idempotence",
    "contrast_kept",
    "dice_raw",
    "volume_change_raw",
    *LABEL_METRICS,
)
"""Metrics of one image that are averaged over images."""

MetricFunctions = dict[str, Callable[[], float | None]]
"""By metric, the function that computes it; it returns None if the metric is not available."""


@dataclass(frozen=True)
class ImageMetrics:
    """One image's metrics by name, for one method; metrics that are not available are left out."""

    record: ImageRecord
    method: str
    values: Mapping[str, float]


def measure_image(
    output: MethodOutput, truth: Truth | None, runner: MetricRunner, raw_labels: np.ndarray | None = None
) -> ImageMetrics:
    """All available :data:`IMAGE_METRICS`; ``raw_labels`` are the tissues segmented in the raw scan."""
    functions = _source_metrics(output)
    if truth is not None:
        functions |= _truth_metrics(output, truth)
    functions |= _lesion_metrics(output, truth)
    if raw_labels is not None and output.labels is not None:
        functions |= _raw_label_metrics(output, output.labels, raw_labels)
    if output.scan.label_map is not None:
        sequence = output.scan.record.sequence
        functions |= label_metrics(output.image, output.labels, output.scan.label_map, sequence)
    record = output.scan.record
    return ImageMetrics(record, output.method, run_all(functions, record.image_id, runner))


def run_all(functions: Mapping[str, Callable[[], float | None]], owner: str, runner: MetricRunner) -> dict[str, float]:
    """Run each function under its name; metrics that are not available are left out."""
    values = {}
    for name, function in functions.items():
        value = runner.run(name, owner, function)
        if value is not None:
            values[name] = value
    return values


def _source_metrics(output: MethodOutput) -> MetricFunctions:
    """How the output differs from its source scan."""
    image = output.image
    source = output.scan.volume.data
    mask = output.scan.mask
    functions: MetricFunctions = {
        "gradient_correlation": partial(gradient_correlation, image, source, mask),
        "structural_dissimilarity": partial(preservation.structural_dissimilarity, image, source, mask),
        "hallucination": partial(preservation.hallucination, image, source, mask),
        "noise": partial(preservation.noise_estimate, image, mask),
        "smoothness_mm": partial(preservation.smoothness_mm, image, mask, output.scan.volume.spacing),
        "gm_share": partial(output.tissue_share, "GM"),
    }
    path_of_second_pass = output.scan.record.outputs.get(output.method + AGAIN)
    if path_of_second_pass:
        functions["idempotence"] = lambda: preservation.idempotence(
            image, read_output(path_of_second_pass, output.scan), mask
        )
    return functions


def _truth_metrics(output: MethodOutput, truth: Truth) -> MetricFunctions:
    mask = output.scan.mask
    scaled_truth = scale_by_percentiles(truth.noisefree, mask)
    functions: MetricFunctions = {
        "psnr_truth": partial(psnr, output.scaled, scaled_truth, mask),
        "ssim_truth": partial(ssim, output.scaled, scaled_truth, mask),
    }
    if truth.tissues.keys() >= {"GM", "WM"}:
        grey = truth.tissues["GM"] * mask
        white = truth.tissues["WM"] * mask
        functions["tissue_contrast"] = partial(tissue_contrast, output.image, grey, white)
    if truth.labels is not None and output.labels is not None:
        true_labels = truth.labels * mask
        functions["dice_truth"] = partial(mean_dice, output.labels, true_labels)
        functions["volume_error_truth"] = partial(mean_volume_error, output.labels, true_labels)
    return functions


def _lesion_metrics(output: MethodOutput, truth: Truth | None) -> MetricFunctions:
    """Contrast of the lesion in the truth, else of the lesion mask in the archive's derivatives."""
    true_lesion = None if truth is None else truth.lesion
    lesion_uri = output.scan.record.lesion_uri
    if true_lesion is None and not lesion_uri:
        return {}

    def lesion_preservation() -> float | None:
        lesion = true_lesion
        if lesion is None:
            assert lesion_uri is not None
            lesion = read_output(lesion_uri, output.scan) > 0.5
        lesion = lesion & output.scan.mask
        if not lesion.any():
            return None
        return preservation.lesion_preservation(output.image, output.scan.volume.data, lesion, output.scan.mask)

    return {"lesion_preservation": lesion_preservation}


def _raw_label_metrics(output: MethodOutput, labels: np.ndarray, raw_labels: np.ndarray) -> MetricFunctions:
    """Agreement with the same segmentation of the raw scan: it is not accuracy, but available for every scan."""
    agreed = labels * (labels == raw_labels)
    functions: MetricFunctions = {
        "contrast_kept": partial(_contrast_kept, output.image, output.scan.volume.data, agreed)
    }
    if output.method != RAW:
        functions["dice_raw"] = partial(mean_dice, labels, raw_labels)
        functions["volume_change_raw"] = partial(mean_volume_error, labels, raw_labels)
    return functions


def _contrast_kept(image: np.ndarray, source: np.ndarray, agreed: np.ndarray) -> float | None:
    """Grey-white contrast divided by that of the scan, in voxels where both segmentations agree.

    Either segmentation alone would favour the image that it was made from.
    """
    grey = agreed == TISSUES.index("GM") + 1
    white = agreed == TISSUES.index("WM") + 1
    before = tissue_contrast(source, grey, white)
    if not before > 0:
        return None
    return tissue_contrast(image, grey, white) / before
