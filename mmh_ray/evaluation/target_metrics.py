"""How near scans of other sites come to a target site: a traveling subject's own scan there is the answer, and never an input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmh_ray.errors import DataError, MMHError
from mmh_ray.evaluation.baselines.image_baselines import HistogramMatching, Nyul, quantile_function
from mmh_ray.evaluation.inputs.scans import Scan, Truth, on_one_grid, read_output, read_scan, read_truth
from mmh_ray.evaluation.metrics.agreement import gradient_correlation, psnr, scale_by_percentiles, ssim, truth_bins, w1
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
"""The source scan as it is; N4 and histogram matching to the target cohort's mean histogram; Nyúl fitted on the target cohort; the
global harmonizer alone; the global harmonizer and the target's adapter. And no method, but what the figures are worth: the noise-free
truth at the target, which differs from the scan there by noise and bias field alone."""

SHOWN = {
    RAW: "raw",
    MATCHED: "n4_histogram_matching",
    NYUL: "nyul",
    GLOBAL: "global harmonizer alone",
    OURS: "ours",
    TRUTH: "(noise-free truth)",
}
"""Their names in tables."""

Row = dict[str, Any]


@dataclass(frozen=True)
class TargetCase:
    """One traveling subject's scans of one sequence.

    Attributes
    ----------
    target:
        Manifest row of the scan at the target site.
    sources:
        Rows of the scans elsewhere. All have the paths of their outputs under the keys ``global`` and ``target``.
    """

    subject: str
    sequence: str
    target: Row
    sources: tuple[Row, ...]


@dataclass(frozen=True)
class TargetCohort:
    """What is known of the target from its other subjects, for one sequence.

    Attributes
    ----------
    matching, nyul:
        Baselines fitted on them.
    intensities:
        ``(1001 n,)`` quantile functions of their ``n`` brains' scaled intensities, pooled: every image has the same weight.
    corrected:
        ``(1001 n,)`` the same after N4.
    style:
        ``(D,)`` their mean style vector.
    """

    matching: HistogramMatching
    nyul: Nyul
    intensities: np.ndarray
    corrected: np.ndarray
    style: np.ndarray

    @classmethod
    def of(cls, images: Sequence[CohortImage]) -> TargetCohort:
        """From the facts of the images."""
        return cls(
            HistogramMatching.from_quantiles(image.after for image in images),
            Nyul.from_quantiles(image.before for image in images),
            np.concatenate([image.scaled for image in images]),
            np.concatenate([image.corrected for image in images]),
            np.mean([image.style for image in images], axis=0),
        )


class CohortImage(NamedTuple):
    """Of one image of the target: quantile functions ``(1001,)`` of the brain before and after N4 and of both scaled by their percentiles
    (``scaled``, ``corrected``), and the style vector ``(D,)``."""

    before: np.ndarray
    after: np.ndarray
    scaled: np.ndarray
    corrected: np.ndarray
    style: np.ndarray


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
    slices:
        Whether slices for the convolutional probe are wanted.
    methods:
        Those to score.
    cohorts:
        By sequence; without one, what is fitted on it is left out.
    """

    iterations: tuple[int, ...]
    describe: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    truth: str | None = None
    slices: bool = False
    methods: tuple[str, ...] = METHODS
    cohorts: Mapping[str, TargetCohort] = field(default_factory=dict)


def cohort_image(row: Row, settings: TargetSettings) -> CohortImage:
    """What the cohort needs of one image of the target."""
    scan = read_scan(row, settings.iterations)
    images = scan.volume.data, scan.corrected
    before, after = (quantile_function(image, scan.mask) for image in images)
    scaled, corrected = (quantile_function(scale_by_percentiles(image, scan.mask), scan.mask) for image in images)
    style = settings.describe(scan.volume.data, scan.mask, scan.volume.affine)
    return CohortImage(before, after, scaled, corrected, style)


def score_target(case: TargetCase, settings: TargetSettings) -> list[Row]:
    """A row per source scan and method: measures; under ``joint`` what the truth error needs, under ``style`` and ``slices`` what the
    probes need. What cannot be scored has a ``reason`` instead. Of the scan at the target there is a row per method with ``identity``
    alone: how far the method moves what looks as wanted already.

    Raises
    ------
    DataError
        If the scan at the target or the truth cannot be read.
    """
    answer = read_scan(case.target, settings.iterations)
    truth = _read_truth(settings.truth, case.target)
    measurer = _Measurer(answer, truth, settings, settings.cohorts.get(case.sequence))
    methods = [name for name in settings.methods if measurer.cohort or name not in (MATCHED, NYUL)]
    methods = [name for name in methods if truth or name != TRUTH]
    rows = _identity(measurer, methods)
    for source in case.sources:
        about = {name: source[name] for name in ("image_id", "subject", "site", "sequence")}
        try:
            scan = read_scan(source, settings.iterations)
            if not on_one_grid(scan, answer):
                where = f"{source['uri']}: another grid than {case.target['uri']}"
                raise DataError(where, "scans of one grid", "Resample one of them.")
        except MMHError as error:
            rows += [about | {"method": method, "reason": str(error)} for method in methods]
            continue
        for method in methods:
            rows.append(_row(about, method, partial(measurer, method, scan)))
    return rows


def _identity(measurer: _Measurer, methods: Sequence[str]) -> list[Row]:
    """Rows of the scan at the target; none of a folder without an output of it, as nobody need harmonize the target's own scans."""
    own = measurer.answer.row
    about = {name: own[name] for name in ("image_id", "subject", "site", "sequence")}
    outputs = {GLOBAL: own["global"], OURS: own["target"]}
    made = [name for name in methods if name != TRUTH and (name not in outputs or Path(outputs[name]).is_file())]
    return [_row(about, method, partial(measurer.identity, method)) for method in made]


def _row(about: Row, method: str, measure: Callable[[], Row]) -> Row:
    """What was measured, or the reason why it could not be."""
    try:
        return about | {"method": method} | measure()
    except MMHError as error:
        return about | {"method": method, "reason": str(error)}


def middle_slices(case: TargetCase, iterations: tuple[int, ...], truth: str | None) -> dict[str, list[np.ndarray]]:
    """Middle slices of one subject for a picture, a column per source scan: the scan, what was made of it, and what it should be."""
    answer = read_scan(case.target, iterations)
    wanted = {"the same person's\nscan at the target": answer.volume.data}
    if found := _read_truth(truth, case.target):
        wanted["noise-free truth\nof the target"] = found.noisefree
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    for source in case.sources:
        scan = read_scan(source, iterations)
        made = {"source": scan.volume.data, "global": read_output(source["global"], scan)}
        made["moved to\nthe target"] = read_output(source["target"], scan)
        for name, image in {**made, **wanted}.items():
            mask = answer.mask if name in wanted else scan.mask
            affine = answer.volume.affine if name in wanted else scan.volume.affine
            rows[name].append(middle_slice(scale_by_percentiles(image, mask), mask, affine))
    return dict(rows)


class _Measurer:
    """Measures of an image against the answer, as scanned and (``_n4``) without its bias field, which is drawn anew with every scan and
    no site's look. Every image is scaled by nothing but itself before it is compared."""

    def __init__(
        self, answer: Scan, truth: Truth | None, settings: TargetSettings, cohort: TargetCohort | None
    ) -> None:
        self.answer, self.truth, self.settings, self.cohort = answer, truth, settings, cohort
        self.wanted = scale_by_percentiles(answer.volume.data, answer.mask)
        self.corrected = scale_by_percentiles(answer.corrected, answer.mask)

    def _output(self, method: str, scan: Scan) -> np.ndarray:
        if method == RAW:
            return scan.volume.data
        if method == TRUTH:
            assert self.truth is not None
            return self.truth.noisefree
        if method in (MATCHED, NYUL):
            assert self.cohort is not None
            matched = method == MATCHED
            return (self.cohort.matching if matched else self.cohort.nyul).apply(
                scan.corrected if matched else scan.volume.data, scan.mask
            )
        return read_output(scan.row["global" if method == GLOBAL else "target"], scan)

    def identity(self, method: str) -> Row:
        """How far the scan at the target is moved."""
        answer = self.answer
        return {"identity": distance(self._output(method, answer), answer.volume.data, answer.mask)}

    def __call__(self, method: str, scan: Scan) -> Row:
        image = self._output(method, scan)
        both, scaled = scan.mask & self.answer.mask, scale_by_percentiles(image, scan.mask)
        style = self.settings.describe(image, scan.mask, scan.volume.affine)
        row: Row = {"psnr": psnr(scaled, self.wanted, both), "ssim": ssim(scaled, self.wanted, both)}
        row |= {"psnr_n4": psnr(scaled, self.corrected, both), "ssim_n4": ssim(scaled, self.corrected, both)}
        row["gradient_correlation"] = gradient_correlation(image, scan.volume.data, scan.mask)
        if self.cohort is not None:
            row["w1"] = w1(scaled[scan.mask], self.cohort.intensities)
            row["w1_n4"] = w1(scaled[scan.mask], self.cohort.corrected)
            row["style_distance"] = 1 - float(style @ self.cohort.style / np.linalg.norm(self.cohort.style))
        if self.truth is not None:
            row["joint"] = truth_bins(scaled, self.truth.noisefree, scan.mask)
            row["truth_nrmse_direct"] = direct_error(scaled, self.truth.noisefree, scan.mask)
            row |= self._dice(scaled, scan)
        slices = probe_slices(image, scan.mask, scan.volume.affine) if self.settings.slices else None
        return row | {"style": style, "slices": slices}

    def _dice(self, scaled: np.ndarray, scan: Scan) -> Row:
        labels, sequence = self.truth and self.truth.labels, scan.row["sequence"]
        if labels is None or sequence not in BY_BRIGHTNESS:
            return {}
        found = tissue_labels(segment_tissues(scaled, scan.mask, sequence))
        return {"dice": mean_dice(found, labels * scan.mask)}


def direct_error(scaled: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """``√mean((output − truth)²) / sd(truth)`` over the brain, both scaled by their own percentiles.

    No map is fitted, so that wrong contrast counts, which :func:`mmh_ray.evaluation.metrics.agreement.truth_nrmse` forgives.
    Range 0 to ∞; lower is better; 0 for the truth itself under any gain and offset.
    """
    wanted = scale_by_percentiles(truth, mask)[mask]
    return float(np.sqrt(np.mean((scaled[mask] - wanted) ** 2)) / wanted.std())


def _read_truth(folder: str | None, row: Row) -> Truth | None:
    """Noise-free image of the subject as the target's scanner would show it, and the subject's tissues."""
    if folder is None:
        return None
    parts = [f"sub-{row['subject']}", *([f"ses-{row['session']}"] if row["session"] else [])]
    path = Path(folder, *parts, "anat", f"{'_'.join(parts)}_desc-noisefree_{row['sequence']}.nii.gz")
    return replace(read_truth(folder, row["subject"], row["sequence"]), noisefree=read_volume(path).data)
