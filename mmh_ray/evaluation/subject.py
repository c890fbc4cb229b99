"""One subject's scans of one sequence under every method: small numbers out, whatever the size of the scans."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmh_ray.errors import DataError
from mmh_ray.evaluation.baselines import BASELINES, Baseline, quantile_function
from mmh_ray.evaluation.figures import middle_slice
from mmh_ray.evaluation.metrics import (
    gradient_correlation,
    joint_bins,
    psnr,
    scale_by_percentiles,
    ssim,
    tissue_contrast,
    w1,
)
from mmh_ray.imaging.intensity import correct_bias
from mmh_ray.imaging.mask import find_brain
from mmh_ray.imaging.volume import Volume, read_volume

OURS = "harmonized"
METHODS = (*BASELINES, OURS)
PAIR_MEASURES = ("psnr", "ssim", "w1")
IMAGE_MEASURES = ("psnr_truth", "ssim_truth", "gradient_correlation", "tissue_contrast")

_HISTOGRAM_POINTS = 256

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One subject's usable images of one sequence.

    Attributes
    ----------
    rows:
        Manifest rows, each with the path of its output under the key ``harmonized``.
    pictured:
        Whether middle slices are wanted for the figures.
    """

    subject: str
    sequence: str
    rows: tuple[Row, ...]
    pictured: bool = False


@dataclass(frozen=True)
class Settings:
    """What scoring any case needs: baselines by sequence and method, folder of the truth, N4's iterations."""

    baselines: Mapping[str, Mapping[str, Baseline]]
    truth: str | None
    iterations: tuple[int, ...]


@dataclass
class Score:
    """What is known of one case, or of all of them.

    Attributes
    ----------
    images:
        A row per image and method: measures, 256 ``quantiles`` of the scaled brain, the binned truth (``joint``).
    pairs:
        A row per pair of images from two sites and method.
    missing, failed, notes:
        Images without harmonized output; images that could not be read; what else to know.
    slices, sites:
        Of a pictured case: middle slices by method and ``truth``, one per site whose harmonized image exists.
    """

    images: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    slices: dict[str, list[np.ndarray]] = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)

    def fail(self, row: Row, reason: object) -> None:
        """Keep an image that could not be read or scored, with its reason."""
        self.failed.append({"image_id": row["image_id"], "reason": str(reason)})


@dataclass(frozen=True, eq=False)
class _Scan:
    row: Row
    volume: Volume
    mask: np.ndarray
    corrected: np.ndarray
    harmonized: np.ndarray | None

    def slice(self, image: np.ndarray) -> np.ndarray:
        return middle_slice(image, self.mask, self.volume.affine)


@dataclass(frozen=True)
class _Truth:
    noisefree: np.ndarray
    gm: np.ndarray | None
    wm: np.ndarray | None


@dataclass(frozen=True)
class _Output:
    scan: _Scan
    image: np.ndarray
    scaled: np.ndarray


def score(case: Case, settings: Settings) -> Score:
    """Apply every method to a subject's scans and measure; one method's images are held at a time."""
    found = Score()
    truth = _read_truth(case, settings, found)
    scans = [scan for row in case.rows if (scan := _read_scan(row, settings, truth, found)) is not None]
    shown = [scan for scan in scans if case.pictured and scan.harmonized is not None]
    found.sites = [scan.row["site"] for scan in shown]
    for method in METHODS:
        outputs = _apply(method, scans, settings.baselines.get(case.sequence, {}))
        found.images += [{"method": method, **_measure_image(method, output, truth)} for output in outputs]
        for a, b in itertools.combinations(outputs, 2):
            if a.scan.row["site"] != b.scan.row["site"]:
                found.pairs.append({"method": method, **_measure_pair(a, b, found)})
        found.slices[method] = [output.scan.slice(output.scaled) for output in outputs if output.scan in shown]
    if truth is not None:
        found.slices["truth"] = [scan.slice(scale_by_percentiles(truth.noisefree, scan.mask)) for scan in shown]
    return found


def training_quantiles(row: Row, iterations: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Quantile functions of one training image before and after N4: all that any baseline is fitted from."""
    volume = read_volume(row["uri"])
    mask = _read_mask(row, volume)
    corrected = correct_bias(volume.data, mask, volume.spacing, iterations)
    return quantile_function(volume.data, mask), quantile_function(corrected, mask)


def _apply(method: str, scans: list[_Scan], baselines: Mapping[str, Baseline]) -> list[_Output]:
    def image(scan: _Scan) -> np.ndarray | None:
        if method == OURS or method not in baselines:
            return scan.harmonized if method == OURS else None
        baseline = baselines[method]
        return baseline.apply(scan.corrected if baseline.bias_corrected else scan.volume.data, scan.mask)

    made = ((scan, image(scan)) for scan in scans)
    return [_Output(scan, data, scale_by_percentiles(data, scan.mask)) for scan, data in made if data is not None]


def _measure_image(method: str, output: _Output, truth: _Truth | None) -> Row:
    """A scanner's gain means nothing: raw enters the truth error scaled by its percentiles, which can only help it."""
    scan, scaled = output.scan, output.scaled
    row: Row = {name: scan.row[name] for name in ("image_id", "subject", "site", "sequence")}
    row |= dict.fromkeys((*IMAGE_MEASURES, "truth_nrmse", "joint"))
    middles = (np.arange(_HISTOGRAM_POINTS) + 0.5) / _HISTOGRAM_POINTS
    row["quantiles"] = np.quantile(scaled[scan.mask], middles).astype(np.float32)
    row["gradient_correlation"] = gradient_correlation(output.image, scan.volume.data, scan.mask)
    if truth is not None:
        target = scale_by_percentiles(truth.noisefree, scan.mask)
        row["psnr_truth"], row["ssim_truth"] = psnr(scaled, target, scan.mask), ssim(scaled, target, scan.mask)
        row["joint"] = joint_bins(scaled if method == "raw" else output.image, truth.noisefree, scan.mask)
        if truth.gm is not None and truth.wm is not None:
            row["tissue_contrast"] = tissue_contrast(output.image, truth.gm * scan.mask, truth.wm * scan.mask)
    return row


def _measure_pair(a: _Output, b: _Output, found: Score) -> Row:
    names = [output.scan.row["image_id"] for output in (a, b)]
    row: Row = {"images": names, "sequence": a.scan.row["sequence"], "psnr": None, "ssim": None}
    row["w1"] = w1(a.scaled[a.scan.mask], b.scaled[b.scan.mask])
    aligned = a.image.shape == b.image.shape and np.allclose(a.scan.volume.affine, b.scan.volume.affine, atol=1e-3)
    if aligned and (both := a.scan.mask & b.scan.mask).any():
        row |= {"psnr": psnr(a.scaled, b.scaled, both), "ssim": ssim(a.scaled, b.scaled, both)}
    else:
        found.notes.append(f"{names[0]} and {names[1]} are on different grids: no PSNR or SSIM between them")
    return row


def _read_scan(row: Row, settings: Settings, truth: _Truth | None, found: Score) -> _Scan | None:
    try:
        volume = read_volume(row["uri"])
        mask = _read_mask(row, volume)
        if truth is not None:
            _check_shape(truth.noisefree, volume, f"truth of {row['image_id']}")
        corrected = correct_bias(volume.data, mask, volume.spacing, settings.iterations)
    except DataError as error:
        found.fail(row, error)
        return None
    return _Scan(row, volume, mask, corrected, _read_harmonized(row, volume, found))


def _read_mask(row: Row, volume: Volume) -> np.ndarray:
    if row["mask_uri"] is None:
        return find_brain(volume).mask
    mask = read_volume(row["mask_uri"]).data > 0.5
    _check_shape(mask, volume, row["mask_uri"])
    if not mask.any():
        raise DataError(f"{row['mask_uri']}: empty mask", "voxels of 1 in the brain", "Make the mask again.")
    return mask


def _read_harmonized(row: Row, volume: Volume, found: Score) -> np.ndarray | None:
    path = Path(row["harmonized"])
    if not path.exists():
        found.missing.append({"image_id": row["image_id"], "expected": str(path)})
        return None
    try:
        data = read_volume(path).data
        _check_shape(data, volume, str(path))
    except DataError as error:
        found.fail(row, error)
        return None
    return data


def _check_shape(data: np.ndarray, volume: Volume, name: str) -> None:
    if data.shape != volume.data.shape:
        raise DataError(f"{name}: shape {data.shape}", f"the scan's {volume.data.shape}", "Put it on the scan's grid.")


def _read_truth(case: Case, settings: Settings, found: Score) -> _Truth | None:
    if settings.truth is None:
        return None
    stem = Path(settings.truth, f"sub-{case.subject}", "anat", f"sub-{case.subject}")
    maps = [Path(f"{stem}_label-{tissue}_probseg.nii.gz") for tissue in ("GM", "WM")]
    try:
        noisefree = read_volume(f"{stem}_desc-noisefree_{case.sequence}.nii.gz").data
        gm, wm = (read_volume(path).data if path.exists() else None for path in maps)
    except DataError as error:
        found.notes.append(f"no truth for sub-{case.subject} {case.sequence}: {error}")
        return None
    return _Truth(noisefree, gm, wm)
