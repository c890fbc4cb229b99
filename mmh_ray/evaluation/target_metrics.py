"""How near scans of other sites come to a target site.

A traveling subject's own scan at the target is the answer, and never an input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmh_ray.errors import DataError, MMHError
from mmh_ray.evaluation.baselines.image_baselines import (
    Baseline,
    CorrectedHistogramMatching,
    Nyul,
    apply_baseline,
    quantile_function,
)
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Scan, Truth, on_one_grid, read_output, read_scan, read_truth
from mmh_ray.evaluation.metrics.agreement import (
    JointBins,
    gradient_correlation,
    psnr,
    scale_by_percentiles,
    ssim,
    truth_bins,
    w1,
)
from mmh_ray.evaluation.metrics.features import probe_slices
from mmh_ray.evaluation.metrics.preservation import distance
from mmh_ray.evaluation.metrics.segmentation import BY_BRIGHTNESS, mean_dice, segment_tissues, tissue_labels
from mmh_ray.evaluation.report.figures import middle_slice
from mmh_ray.imaging.volume import read_volume

RAW, MATCHED, NYUL, GLOBAL, OURS, TRUTH = METHODS = (
    "target_raw",
    "target_n4_histogram_matching",
    "target_nyul",
    "target_global",
    "target_harmonized",
    "target_truth",
)
"""What is scored of every source scan.

- RAW: the scan as it is.
- MATCHED: N4 and histogram matching to the target cohort's mean histogram.
- NYUL: Nyúl fitted on the target cohort.
- GLOBAL: the global harmonizer alone.
- OURS: the global harmonizer and the target's adapter.
- TRUTH: no method, but what the metrics are worth. It is the noise-free truth at the target, which differs from the
scan
  there by noise and bias field alone.
"""

SHOWN = {
    RAW: "raw",
    MATCHED: "n4_histogram_matching",
    NYUL: "nyul",
    GLOBAL: "global harmonizer alone",
    OURS: "ours",
    TRUTH: "(noise-free truth)",
}
"""Their names in tables."""

ARCHIVES = (GLOBAL, OURS)
"""Methods whose outputs lie in an archive, so that a record names their paths."""


@dataclass(frozen=True)
class TargetCase:
    """One traveling subject's scans of one sequence.

    Attributes
    ----------
    target:
        The scan at the target site.
    sources:
        The scans elsewhere. All records have the paths of their outputs by the method's name.
    """

    subject: str
    sequence: str
    target: ImageRecord
    sources: tuple[ImageRecord, ...]


class CohortImage(NamedTuple):
    """What the cohort needs of one image of the target.

    Attributes
    ----------
    before, after:
        ``(1001,)`` quantile functions of the brain before and after N4.
    scaled, corrected:
        The same of the image scaled by its percentiles.
    style:
        ``(D,)`` style vector.
    """

    before: np.ndarray
    after: np.ndarray
    scaled: np.ndarray
    corrected: np.ndarray
    style: np.ndarray


@dataclass(frozen=True)
class TargetCohort:
    """What is known of the target from its other subjects, for one sequence.

    Attributes
    ----------
    baselines:
        Fitted on them, by method.
    intensities:
        ``(1001 n,)`` quantile functions of their ``n`` brains' scaled intensities, pooled: every image has the same
        weight.
    corrected:
        ``(1001 n,)`` the same after N4.
    style:
        ``(D,)`` their mean style vector.
    """

    baselines: Mapping[str, Baseline]
    intensities: np.ndarray
    corrected: np.ndarray
    style: np.ndarray

    @classmethod
    def of(cls, images: Sequence[CohortImage]) -> TargetCohort:
        """From what is known of the images."""
        matching = CorrectedHistogramMatching.from_quantiles(image.after for image in images)
        nyul = Nyul.from_quantiles(image.before for image in images)
        return cls(
            baselines={MATCHED: matching, NYUL: nyul},
            intensities=np.concatenate([image.scaled for image in images]),
            corrected=np.concatenate([image.corrected for image in images]),
            style=np.mean([image.style for image in images], axis=0),
        )


@dataclass(frozen=True)
class TargetSettings:
    """What scoring any case needs.

    Attributes
    ----------
    iterations:
        N4's iterations.
    describe:
        Gives the style vector ``(D,)``, of unit length, of an image, a mask ``(I, J, K)`` and their affine.
    truth:
        Folder of the truth, if there is one.
    has_slices:
        Whether the convolutional probe needs slices.
    methods:
        Those to score.
    cohorts:
        By sequence; without one, what is fitted on it is left out.
    """

    iterations: tuple[int, ...]
    describe: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    truth: str | None = None
    has_slices: bool = False
    methods: tuple[str, ...] = METHODS
    cohorts: Mapping[str, TargetCohort] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TargetMetrics:
    """The metrics of one scan under one method, or the reason why there are none.

    Attributes
    ----------
    values:
        By the metric's name; of the scan at the target ``identity`` alone: how far the method moves it.
    joint:
        What the truth error needs.
    style, slices:
        What the probes need.
    """

    record: ImageRecord
    method: str
    values: Mapping[str, float] = field(default_factory=dict)
    joint: JointBins | None = None
    style: np.ndarray | None = None
    slices: np.ndarray | None = None
    reason: str | None = None


def cohort_image(record: ImageRecord, settings: TargetSettings) -> CohortImage:
    """What the cohort needs of one image of the target."""
    scan = read_scan(record, settings.iterations)
    image = scan.volume.data
    return CohortImage(
        before=quantile_function(image, scan.mask),
        after=quantile_function(scan.corrected, scan.mask),
        scaled=quantile_function(scale_by_percentiles(image, scan.mask), scan.mask),
        corrected=quantile_function(scale_by_percentiles(scan.corrected, scan.mask), scan.mask),
        style=settings.describe(image, scan.mask, scan.volume.affine),
    )


def score_target(case: TargetCase, settings: TargetSettings) -> list[TargetMetrics]:
    """Metrics of every source scan and method, and of the scan at the target.

    Raises
    ------
    DataError
        If the scan at the target or the truth cannot be read.
    """
    answer = read_scan(case.target, settings.iterations)
    truth = _read_truth(settings.truth, case.target)
    scorer = _Scorer(answer, truth, settings, settings.cohorts.get(case.sequence))
    metrics = [scorer.identity(method) for method in scorer.methods if scorer.has_output_of_target(method)]
    for record in case.sources:
        try:
            scan = _read_source(record, answer, settings)
        except MMHError as error:
            metrics += [TargetMetrics(record, method, reason=str(error)) for method in scorer.methods]
            continue
        metrics += [scorer.score(method, scan) for method in scorer.methods]
    return metrics


def middle_slices(case: TargetCase, iterations: tuple[int, ...], truth: str | None) -> dict[str, list[np.ndarray]]:
    """Middle slices of one subject for a picture: the scan, the outputs, and what they should be, by source scan."""
    answer = read_scan(case.target, iterations)
    true_images = {"the same person's\nscan at the target": answer.volume.data}
    target_truth = _read_truth(truth, case.target)
    if target_truth is not None:
        true_images["noise-free truth\nof the target"] = target_truth.noisefree
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    for record in case.sources:
        scan = read_scan(record, iterations)
        images = {
            "source": scan.volume.data,
            "global": read_output(record.outputs[GLOBAL], scan),
            "moved to\nthe target": read_output(record.outputs[OURS], scan),
        }
        for name, image in images.items():
            rows[name].append(_scaled_slice(image, scan))
        for name, image in true_images.items():
            rows[name].append(_scaled_slice(image, answer))
    return dict(rows)


def direct_error(scaled: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """``√mean((output − truth)²) / sd(truth)`` over the brain, both scaled by their own percentiles.

    No map is fitted, so that wrong contrast counts, which :func:`mmh_ray.evaluation.metrics.agreement.truth_nrmse`
    forgives. Range 0 to ∞; lower is better; 0 for the truth itself under any gain and offset.
    """
    scaled_truth = scale_by_percentiles(truth, mask)[mask]
    return float(np.sqrt(np.mean((scaled[mask] - scaled_truth) ** 2)) / scaled_truth.std())


class _Scorer:
    """Metrics of an image against the answer, as scanned and (``_n4``) without its bias field.

    The bias field is drawn anew with every scan, so it is no part of a site's look. Every image is scaled by nothing
    but itself before it is compared.
    """

    def __init__(
        self, answer: Scan, truth: Truth | None, settings: TargetSettings, cohort: TargetCohort | None
    ) -> None:
        self.answer = answer
        self.truth = truth
        self.settings = settings
        self.cohort = cohort
        self.scaled_answer = scale_by_percentiles(answer.volume.data, answer.mask)
        self.corrected_answer = scale_by_percentiles(answer.corrected, answer.mask)

    @property
    def methods(self) -> list[str]:
        """Those of the settings that can be scored with this truth and cohort."""
        methods = []
        for method in self.settings.methods:
            lacks_cohort = method in (MATCHED, NYUL) and self.cohort is None
            lacks_truth = method == TRUTH and self.truth is None
            if not lacks_cohort and not lacks_truth:
                methods.append(method)
        return methods

    def has_output_of_target(self, method: str) -> bool:
        """Whether the method made something of the scan at the target: nobody need harmonize the target's own scans."""
        if method == TRUTH:
            return False
        return method not in ARCHIVES or Path(self.answer.record.outputs[method]).is_file()

    def identity(self, method: str) -> TargetMetrics:
        """How far the method moves the scan at the target, which is as it should be already."""
        answer = self.answer
        try:
            moved = distance(self._output(method, answer), answer.volume.data, answer.mask)
        except MMHError as error:
            return TargetMetrics(answer.record, method, reason=str(error))
        return TargetMetrics(answer.record, method, {"identity": moved})

    def score(self, method: str, scan: Scan) -> TargetMetrics:
        """The metrics of a source scan, or the reason why it has none."""
        try:
            image = self._output(method, scan)
            return self._measure(method, image, scan)
        except MMHError as error:
            return TargetMetrics(scan.record, method, reason=str(error))

    def _output(self, method: str, scan: Scan) -> np.ndarray:
        if method == RAW:
            return scan.volume.data
        if method == TRUTH:
            assert self.truth is not None
            return self.truth.noisefree
        if method in ARCHIVES:
            return read_output(scan.record.outputs[method], scan)
        assert self.cohort is not None
        return apply_baseline(self.cohort.baselines[method], scan.volume.data, scan.corrected, scan.mask)

    def _measure(self, method: str, image: np.ndarray, scan: Scan) -> TargetMetrics:
        scaled = scale_by_percentiles(image, scan.mask)
        style = self.settings.describe(image, scan.mask, scan.volume.affine)
        both = scan.mask & self.answer.mask
        values = {
            "psnr": psnr(scaled, self.scaled_answer, both),
            "ssim": ssim(scaled, self.scaled_answer, both),
            "psnr_n4": psnr(scaled, self.corrected_answer, both),
            "ssim_n4": ssim(scaled, self.corrected_answer, both),
            "gradient_correlation": gradient_correlation(image, scan.volume.data, scan.mask),
        }
        if self.cohort is not None:
            values["w1"] = w1(scaled[scan.mask], self.cohort.intensities)
            values["w1_n4"] = w1(scaled[scan.mask], self.cohort.corrected)
            values["style_distance"] = 1 - float(style @ self.cohort.style / np.linalg.norm(self.cohort.style))
        joint = None
        if self.truth is not None:
            joint = truth_bins(scaled, self.truth.noisefree, scan.mask)
            values["truth_nrmse_direct"] = direct_error(scaled, self.truth.noisefree, scan.mask)
            if self.truth.labels is not None and scan.record.sequence in BY_BRIGHTNESS:
                segmented = tissue_labels(segment_tissues(scaled, scan.mask, scan.record.sequence))
                values["dice"] = mean_dice(segmented, self.truth.labels * scan.mask)
        slices = None
        if self.settings.has_slices:
            slices = probe_slices(image, scan.mask, scan.volume.affine)
        return TargetMetrics(scan.record, method, values, joint, style, slices)


def _read_source(record: ImageRecord, answer: Scan, settings: TargetSettings) -> Scan:
    """A scan of another site; DataError where it lies on another grid than the answer."""
    scan = read_scan(record, settings.iterations)
    if not on_one_grid(scan, answer):
        received = f"{record.uri}: another grid than {answer.record.uri}"
        raise DataError(received, "scans of one grid", "Resample one of them.")
    return scan


def _read_truth(folder: str | None, record: ImageRecord) -> Truth | None:
    """Noise-free image of the subject as the target's scanner would show it, and the subject's tissues."""
    if folder is None:
        return None
    parts = [f"sub-{record.subject}"]
    if record.session:
        parts.append(f"ses-{record.session}")
    file_name = f"{'_'.join(parts)}_desc-noisefree_{record.sequence}.nii.gz"
    noisefree = read_volume(Path(folder, *parts, "anat", file_name)).data
    return replace(read_truth(folder, record.subject, record.sequence), noisefree=noisefree)


def _scaled_slice(image: np.ndarray, scan: Scan) -> np.ndarray:
    return middle_slice(scale_by_percentiles(image, scan.mask), scan.mask, scan.volume.affine)
