"""Computes what the cohort metrics need from one image; its size does not depend on the scan's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmh_ray.evaluation.inputs.scans import ScoringSettings, Truth
from mmh_ray.evaluation.metrics.agreement import JointBins, truth_bins
from mmh_ray.evaluation.metrics.features import fine_detail, image_features, probe_slices
from mmh_ray.evaluation.metrics.label_metrics import Medians
from mmh_ray.evaluation.metrics.outputs import MethodOutput
from mmh_ray.evaluation.metrics.preservation import tissue_quantiles
from mmh_ray.evaluation.metrics.runner import MetricRunner

if TYPE_CHECKING:
    from mmh_ray.evaluation.probes.segmentation_network import TissueSlices

_HISTOGRAM_POINTS = 256


class FineDetail(NamedTuple):
    """Shape of an image's grid, and :func:`mmh_ray.evaluation.metrics.features.fine_detail` of its centre."""

    grid: tuple[int, ...]
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class CohortInputs:
    """Inputs of the cohort metrics from one image; they stay in Ray's object store, not in the driver.

    Attributes
    ----------
    quantiles:
        256 quantiles of the scaled brain.
    tissue_quantiles:
        256 quantiles of each tissue.
    joint:
        The binned truth; None without a truth.
    features:
        Named features of the brain.
    common_features:
        Features of the voxels that are brain in every scan; None without a common mask.
    slices:
        ``(S, P, P)`` for the convolutional probe.
    style:
        ``(D,)`` style vector.
    tissue_slices:
        Slices and tissues for the U-Net.
    medians:
        Median intensities of the labelled tissues.
    """

    quantiles: np.ndarray
    tissue_quantiles: Mapping[str, np.ndarray]
    joint: JointBins | None
    features: Mapping[str, float]
    common_features: Mapping[str, float] | None
    detail: FineDetail
    slices: np.ndarray | None = None
    style: np.ndarray | None = None
    tissue_slices: TissueSlices | None = None
    medians: Medians | None = None


def cohort_inputs(
    output: MethodOutput,
    truth: Truth | None,
    settings: ScoringSettings,
    runner: MetricRunner,
    raw_labels: np.ndarray | None = None,
) -> CohortInputs:
    """Compute the inputs from one image; ``raw_labels`` are the tissues segmented in the raw scan.

    For the truth error, image and truth are each scaled by their own percentiles, for every method: the unit of an MR
    image is arbitrary, so keeping the scanner's gain is not penalised.
    """
    scan = output.scan
    image = output.image
    image_id = scan.record.image_id
    spacing = scan.volume.spacing
    affine = scan.volume.affine

    regions = None
    if output.labels is not None:
        regions = runner.run("tissue_quantiles", image_id, tissue_quantiles, output.scaled, output.labels)
    features = runner.run("features", image_id, image_features, image, scan.mask, spacing)

    common_features = None
    common_mask = settings.common_masks.get((scan.record.sequence, scan.mask.shape))
    if common_mask is not None:
        common_features = runner.run("person_features", image_id, image_features, image, common_mask, spacing)
    detail = runner.run("fine_detail", image_id, fine_detail, image, scan.mask)

    style = None
    if output.method in settings.styled_methods and settings.style is not None:
        style = runner.run("style_vector", image_id, settings.style, image, scan.mask, affine)

    slices = None
    tissue_slices = None
    if output.method in settings.sliced_methods:
        slices = runner.run("slices", image_id, probe_slices, image, scan.mask, affine)
        tissue_slices = _tissue_slices(output, truth, raw_labels, runner)

    probabilities = (np.arange(_HISTOGRAM_POINTS) + 0.5) / _HISTOGRAM_POINTS
    return CohortInputs(
        quantiles=np.quantile(output.scaled[scan.mask], probabilities).astype(np.float32),
        tissue_quantiles=regions or {},
        joint=None if truth is None else truth_bins(output.scaled, truth.noisefree, scan.mask),
        features=features or {},
        common_features=common_features,
        detail=FineDetail(scan.mask.shape, detail),
        slices=slices,
        style=style,
        tissue_slices=tissue_slices,
        medians=output.medians,
    )


def _tissue_slices(
    output: MethodOutput, truth: Truth | None, raw_labels: np.ndarray | None, runner: MetricRunner
) -> TissueSlices | None:
    """Slices with the true tissues, else those segmented in the raw scan; the same tissues for every method."""
    labels = raw_labels
    if truth is not None and truth.labels is not None:
        labels = truth.labels
    if labels is None:
        return None
    from mmh_ray.evaluation.probes.segmentation_network import tissue_slices  # imports torch

    scan = output.scan
    labels_in_brain = labels * scan.mask
    image_id = scan.record.image_id
    affine = scan.volume.affine
    return runner.run("tissue_slices", image_id, tissue_slices, output.image, scan.mask, labels_in_brain, affine)
