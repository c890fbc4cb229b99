"""How near scans of other sites come to a target site: a traveling subject's own scan there is the answer, and never an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmh_ray.errors import DataError
from mmh_ray.evaluation.baselines import HistogramMatching, Nyul, quantile_function
from mmh_ray.evaluation.metrics import gradient_correlation, joint_bins, psnr, scale_by_percentiles, ssim, w1
from mmh_ray.evaluation.scans import Scan, read_output, read_scan
from mmh_ray.imaging.volume import read_volume

RAW, MATCHED, NYUL, GLOBAL, OURS = METHODS = (
    "target_raw",
    "target_n4_histogram_matching",
    "target_nyul",
    "target_global",
    "target_harmonized",
)
"""The source scan as it is; N4 and histogram matching to the target cohort's mean histogram; Nyúl fitted on the target cohort; the
global harmonizer alone; the global harmonizer and the target's adapter."""

SHOWN = {RAW: "raw", MATCHED: "n4_histogram_matching", NYUL: "nyul", GLOBAL: "global harmonizer alone", OURS: "ours"}
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
        Rows of the scans elsewhere, each with the paths of its outputs under the keys ``global`` and ``target``.
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
        Their brains' scaled intensities, pooled, every image with the same weight.
    """

    matching: HistogramMatching
    nyul: Nyul
    intensities: np.ndarray


@dataclass(frozen=True)
class TargetSettings:
    """What scoring any case needs: the cohort by sequence, N4's iterations, and the folder of the truth, if there is one."""

    cohorts: Mapping[str, TargetCohort]
    iterations: tuple[int, ...]
    truth: str | None


def cohort_quantiles(row: Row, iterations: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one image of the target: quantile functions before and after N4, and of the scaled brain."""
    scan = read_scan(row, iterations)
    raw = quantile_function(scan.volume.data, scan.mask)
    scaled = scale_by_percentiles(scan.volume.data, scan.mask)
    return raw, quantile_function(scan.corrected, scan.mask), quantile_function(scaled, scan.mask)


def score_target(case: TargetCase, settings: TargetSettings) -> list[Row]:
    """A row per source scan and method: measures, and under ``joint`` what the truth error needs.

    Raises
    ------
    DataError
        If a scan, an output or the truth cannot be read, or a source scan is on another grid than the target's.
    """
    cohort = settings.cohorts[case.sequence]
    answer = read_scan(case.target, settings.iterations)
    truth = _read_truth(settings.truth, case.target)
    rows = []
    for source in case.sources:
        scan = read_scan(source, settings.iterations)
        if scan.mask.shape != answer.mask.shape or not np.allclose(scan.volume.affine, answer.volume.affine, atol=1e-3):
            raise DataError(
                f"{source['uri']}: another grid than {case.target['uri']}", "scans of one grid", "Resample."
            )
        for method in METHODS:
            image = _output(method, scan, cohort)
            rows.append({"method": method, **_measure(image, scan, answer, truth, cohort)})
    return rows


def _output(method: str, scan: Scan, cohort: TargetCohort) -> np.ndarray:
    if method == RAW:
        return scan.volume.data
    if method == MATCHED:
        return cohort.matching.apply(scan.corrected, scan.mask)
    if method == NYUL:
        return cohort.nyul.apply(scan.volume.data, scan.mask)
    return read_output(scan.row["global" if method == GLOBAL else "target"], scan)


def _measure(image: np.ndarray, scan: Scan, answer: Scan, truth: np.ndarray | None, cohort: TargetCohort) -> Row:
    """Every image is scaled by nothing but itself before it is compared."""
    both = scan.mask & answer.mask
    scaled = scale_by_percentiles(image, scan.mask)
    wanted = scale_by_percentiles(answer.volume.data, answer.mask)
    row: Row = {name: scan.row[name] for name in ("image_id", "subject", "site", "sequence")}
    row |= {"psnr": psnr(scaled, wanted, both), "ssim": ssim(scaled, wanted, both)}
    row["w1"] = w1(scaled[scan.mask], cohort.intensities)
    row["gradient_correlation"] = gradient_correlation(image, scan.volume.data, scan.mask)
    row["joint"] = None if truth is None else joint_bins(scaled, truth, scan.mask)
    return row


def _read_truth(folder: str | None, row: Row) -> np.ndarray | None:
    """Noise-free image of the subject as the target's scanner would show it."""
    if folder is None:
        return None
    parts = [f"sub-{row['subject']}", *([f"ses-{row['session']}"] if row["session"] else [])]
    path = Path(folder, *parts, "anat", f"{'_'.join(parts)}_desc-noisefree_{row['sequence']}.nii.gz")
    return read_volume(path).data
