"""Measures how similar outputs become to scans of a target site.

A traveling subject's own scan at the target is the reference: outputs are compared with it, and it is never an input.
The target's other people are the cohort: baselines are fitted on them, and intensities and styles are compared with
theirs. Every image is scaled by its own percentiles before it is compared. The bias field differs in every scan, so it
is not a property of a site: metrics that end in ``_n4`` compare with scans after bias field correction.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from mmh_ray.evaluation.inputs.scans import Scan, Truth
from mmh_ray.evaluation.metrics.agreement import psnr, scale_by_percentiles, ssim, w1
from mmh_ray.evaluation.metrics.outputs import MethodOutput
from mmh_ray.evaluation.metrics.per_image import MetricFunctions, run_all
from mmh_ray.evaluation.metrics.per_pair import IDENTITY
from mmh_ray.evaluation.metrics.preservation import distance
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.metrics.training import TargetCohort

TARGET_METRICS = ("psnr", "ssim", "psnr_n4", "ssim_n4", "w1", "w1_n4", "style_distance", "truth_nrmse_direct")
"""Metrics of one image with a target; here `psnr`, `ssim` and `w1` compare with the target, not between sites."""


class TargetComparison:
    """The reference of one case and the cohort of its sequence, which outputs are compared with.

    Parameters
    ----------
    cohort:
        None if no other person has a usable scan at the target.
    """

    def __init__(self, reference: Scan, cohort: TargetCohort | None) -> None:
        self.reference = reference
        self.cohort = cohort
        self._scaled = scale_by_percentiles(reference.volume.data, reference.mask)
        self._corrected = scale_by_percentiles(reference.corrected, reference.mask)

    def measure(
        self, output: MethodOutput, style: np.ndarray | None, truth: Truth | None, runner: MetricRunner
    ) -> dict[str, float]:
        """All available :data:`TARGET_METRICS`.

        Parameters
        ----------
        output:
            On the grid of the reference.
        style:
            ``(D,)`` style vector of the output.
        truth:
            As the target's scanner would show the subject.
        """
        mask = output.scan.mask
        both = mask & self.reference.mask
        functions: MetricFunctions = {
            "psnr": partial(psnr, output.scaled, self._scaled, both),
            "ssim": partial(ssim, output.scaled, self._scaled, both),
            "psnr_n4": partial(psnr, output.scaled, self._corrected, both),
            "ssim_n4": partial(ssim, output.scaled, self._corrected, both),
        }
        if self.cohort is not None:
            intensities = output.scaled[mask]
            functions["w1"] = partial(w1, intensities, self.cohort.intensities)
            functions["w1_n4"] = partial(w1, intensities, self.cohort.corrected)
            if style is not None and self.cohort.style is not None:
                functions["style_distance"] = partial(style_distance, style, self.cohort.style)
        if truth is not None:
            functions["truth_nrmse_direct"] = partial(direct_error, output.scaled, truth.noisefree, mask)
        return run_all(functions, output.scan.record.image_id, runner)

    def identity(self, image: np.ndarray, runner: MetricRunner) -> dict[str, float]:
        """How much a method changes the reference, which needs no change; ``image`` is its output of the reference."""
        reference = self.reference
        function = partial(distance, image, reference.volume.data, reference.mask)
        return run_all({IDENTITY: function}, reference.record.image_id, runner)


def style_distance(style: np.ndarray, cohort_style: np.ndarray) -> float:
    """1 - cosine of a style vector ``(D,)`` of unit length and the cohort's mean one; 0 to 2, lower is better."""
    cosine = style @ cohort_style / np.linalg.norm(cohort_style)
    return 1 - float(cosine)


def direct_error(scaled: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """``√mean((output − truth)²) / sd(truth)`` over the brain, both scaled by their own percentiles.

    No map is fitted, so wrong contrast counts, unlike in :func:`mmh_ray.evaluation.metrics.agreement.truth_error`.
    Range 0 to ∞; lower is better; 0 for the truth itself with any gain and offset.
    """
    scaled_truth = scale_by_percentiles(truth, mask)[mask]
    errors = scaled[mask] - scaled_truth
    root_mean_square = np.sqrt(np.mean(errors**2))
    return float(root_mean_square / scaled_truth.std())
