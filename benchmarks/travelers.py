"""Reads the travelers of a simulated archive and measures images of them, for benchmarks that run in one process."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mmh_ray.evaluation.metrics.agreement import (
    gradient_correlation,
    joint_bins,
    psnr,
    scale_by_percentiles,
    ssim,
    truth_error,
    w1,
)
from mmh_ray.imaging.volume import Volume, read_volume

MEASURES = ("psnr", "ssim", "w1", "gradient_correlation", "truth_nrmse")
Scan = tuple[dict[str, Any], Volume, np.ndarray, np.ndarray]
"""Manifest row, scan, brain mask, noise-free truth."""


def measure(scans: list[Scan], images: list[np.ndarray]) -> dict[str, float]:
    """The metrics of `mmh evaluate` for the images of one sequence."""
    scaled = [scale_by_percentiles(image, mask) for image, (_, _, mask, _) in zip(images, scans, strict=True)]
    pairs: dict[str, list[float]] = {"psnr": [], "ssim": [], "w1": []}
    for (one, a), (other, b) in itertools.combinations(zip(scans, scaled, strict=True), 2):
        if one[0]["subject"] == other[0]["subject"] and one[0]["site"] != other[0]["site"]:
            both = one[2] & other[2]
            pairs["psnr"].append(psnr(a, b, both))
            pairs["ssim"].append(ssim(a, b, both))
            pairs["w1"].append(w1(a[one[2]], b[other[2]]))
    means = {name: float(np.mean(values)) for name, values in pairs.items()}
    edges = [gradient_correlation(image, scan[1].data, scan[2]) for image, scan in zip(images, scans, strict=True)]
    joints = [joint_bins(image, truth, mask) for image, (_, _, mask, truth) in zip(images, scans, strict=True)]
    return means | {"gradient_correlation": float(np.mean(edges)), "truth_nrmse": truth_error(joints).cohort}


def read(manifest: str, truth: str, travelers: int) -> list[Scan]:
    """Scans of the first travelers, with masks and truth."""
    rows = [row for row in pq.read_table(manifest).to_pylist() if row["subject"].startswith("traveler")]
    subjects = sorted({row["subject"] for row in rows})[:travelers]
    scans = []
    for row in rows:
        if row["subject"] in subjects:
            sub = f"sub-{row['subject']}"
            noise_free = read_volume(f"{truth}/{sub}/anat/{sub}_desc-noisefree_{row['sequence']}.nii.gz")
            mask = read_volume(row["mask_uri"]).data > 0.5
            scans.append((row, read_volume(row["uri"]), mask, noise_free.data))
    return scans
