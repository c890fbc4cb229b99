"""Scales and segments a method's output of a scan, once for all metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmh_ray.evaluation.inputs.scans import Scan
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.label_metrics import Medians, medians
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.metrics.segmentation import TISSUES, segment_tissues, tissue_labels


@dataclass(frozen=True, eq=False)
class MethodOutput:
    """A method's output of a scan.

    Attributes
    ----------
    image, scaled:
        ``(I, J, K)`` the image, unscaled and scaled by its own percentiles.
    labels:
        ``(I, J, K)`` uint8 tissues, segmented by a mixture model; None if the sequence's order of tissues is unknown.
    medians:
        Medians of the scaled image in the labelled tissues; None without a label map.
    """

    method: str
    scan: Scan
    image: np.ndarray
    scaled: np.ndarray
    labels: np.ndarray | None
    medians: Medians | None = None

    def tissue_share(self, tissue: str) -> float | None:
        """Share of this tissue in the brain, 0 to 1."""
        if self.labels is None:
            return None
        return float(np.mean(self.labels[self.scan.mask] == TISSUES.index(tissue) + 1))


def make_output(method: str, scan: Scan, image: np.ndarray, runner: MetricRunner) -> MethodOutput:
    """Scale an image by its own percentiles, and segment it."""
    image_id = scan.record.image_id
    scaled = scale_by_percentiles(image, scan.mask)
    labels = runner.run("segmentation", image_id, _segmented, scaled, scan)
    label_medians = None
    if scan.label_map is not None:
        label_medians = runner.run("label_medians", image_id, medians, scaled, scan.label_map)
    return MethodOutput(method=method, scan=scan, image=image, scaled=scaled, labels=labels, medians=label_medians)


def _segmented(scaled: np.ndarray, scan: Scan) -> np.ndarray:
    return tissue_labels(segment_tissues(scaled, scan.mask, scan.record.sequence))
