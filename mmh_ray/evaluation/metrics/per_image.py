"""The metrics of one image under one method: to its source, to the truth, to the labels that others drew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Truth, read_lesion, read_output
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
"""What an image has of itself, its source, its truth and the tissues that others drew: means are taken of these alone."""

MetricFunctions = dict[str, Callable[[], float | None]]
"""By the metric's name, what computes it; None: it cannot be had."""


@dataclass(frozen=True)
class ImageMetrics:
    """The metrics of one image under one method.

    Attributes
    ----------
    values:
        By the metric's name; a metric that cannot be had is left out.
    """

    record: ImageRecord
    method: str
    values: Mapping[str, float]


def measure_image(
    output: MethodOutput, truth: Truth | None, runner: MetricRunner, raw_labels: np.ndarray | None = None
) -> ImageMetrics:
    """Every one of :data:`IMAGE_METRICS` that can be had; ``raw_labels`` are the tissues found in the raw scan."""
    functions = _to_source(output)
    if truth is not None:
        functions |= _to_truth(output, truth)
    functions |= _of_lesion(output, truth)
    if raw_labels is not None and output.labels is not None:
        functions |= _to_raw_labels(output, output.labels, raw_labels)
    if output.scan.label_map is not None:
        sequence = output.scan.record.sequence
        functions |= label_metrics(output.image, output.labels, output.scan.label_map, sequence)
    record = output.scan.record
    return ImageMetrics(record, output.method, run_all(functions, record.image_id, runner))


def run_all(functions: Mapping[str, Callable[[], float | None]], owner: str, runner: MetricRunner) -> dict[str, float]:
    """Run each function under its name; what cannot be had is left out."""
    values = {}
    for name, function in functions.items():
        value = runner.run(name, owner, function)
        if value is not None:
            values[name] = value
    return values


def _to_source(output: MethodOutput) -> MetricFunctions:
    """What the method did to the scan."""
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


def _to_truth(output: MethodOutput, truth: Truth) -> MetricFunctions:
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


def _of_lesion(output: MethodOutput, truth: Truth | None) -> MetricFunctions:
    """Of the lesion that the truth knows, else of the one that lies in the archive's derivatives."""
    true_lesion = None if truth is None else truth.lesion
    lesion_uri = output.scan.record.lesion_uri
    if true_lesion is None and not lesion_uri:
        return {}

    def lesion_preservation() -> float | None:
        lesion = true_lesion
        if lesion is None:
            assert lesion_uri is not None
            lesion = read_lesion(lesion_uri, output.scan)
        lesion = lesion & output.scan.mask
        if not lesion.any():
            return None
        return preservation.lesion_preservation(output.image, output.scan.volume.data, lesion, output.scan.mask)

    return {"lesion_preservation": lesion_preservation}


def _to_raw_labels(output: MethodOutput, labels: np.ndarray, raw_labels: np.ndarray) -> MetricFunctions:
    """Agreement with the tissues that the same segmenter finds in the raw scan: no accuracy, but any scan has it."""
    agreed = labels * (labels == raw_labels)
    functions: MetricFunctions = {
        "contrast_kept": partial(_contrast_kept, output.image, output.scan.volume.data, agreed)
    }
    if output.method != RAW:
        functions["dice_raw"] = partial(mean_dice, labels, raw_labels)
        functions["volume_change_raw"] = partial(mean_volume_error, labels, raw_labels)
    return functions


def _contrast_kept(image: np.ndarray, source: np.ndarray, agreed: np.ndarray) -> float | None:
    """Grey-white contrast over the scan's, where both segmentations agree.

    Either segmentation alone would favour the image that it was made from.
    """
    grey = agreed == TISSUES.index("GM") + 1
    white = agreed == TISSUES.index("WM") + 1
    before = tissue_contrast(source, grey, white)
    if not before > 0:
        return None
    return tissue_contrast(image, grey, white) / before
