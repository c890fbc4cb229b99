"""Measures seconds and memory of `mmh harmonize SCAN OUT`, in one checkout of the repository or in two alternately.

    python benchmarks/one_volume.py SCAN_T1w.nii.gz
    python benchmarks/one_volume.py SCAN_T1w.nii.gz --other ../earlier-checkout --repeats 3

The scan is resampled to 256 x 256 x 170 voxels of 1 mm, with a little noise in the air, so that it compresses like a
real scan. With `--other` the two checkouts take turns, and their images are compared voxel by voxel. On a busy machine
only processor seconds are meaningful.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

HERE = Path(__file__).resolve().parents[1]
SHAPE = (170, 256, 256)
NOISE = 8.0
"""Standard deviation of the noise; the brightest tissue has 1000."""


def main() -> None:
    """Measure and print a row per checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--other", type=Path, help="a second checkout of this repository")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    checkouts = [HERE] if arguments.other is None else [arguments.other.resolve(), HERE]
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder, "scan_T1w.nii.gz")
        nib.save(resampled(arguments.scan), scan)
        runs: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
        for repeat in range(arguments.repeats):
            for number, checkout in enumerate(checkouts):
                out = Path(folder, f"out-{number}-{repeat}.nii.gz")
                runs[checkout].append(measure(checkout, scan, out))
        for number, checkout in enumerate(checkouts):
            medians = {key: statistics.median(run[key] for run in runs[checkout]) for key in runs[checkout][0]}
            print(json.dumps({"checkout": number, **{key: round(value, 2) for key, value in medians.items()}}))
        if len(checkouts) == 2:
            first, second = (nib.load(Path(folder, f"out-{number}-0.nii.gz")).get_fdata() for number in (0, 1))
            print(json.dumps({"largest difference of a voxel": float(np.abs(first - second).max())}))


def resampled(path: Path) -> nib.Nifti1Image:
    """The scan on the grid of the benchmark, around the same centre."""
    scan = nib.load(path)
    data = np.asarray(scan.dataobj, np.float32).reshape(scan.shape[:3])
    centre = (scan.affine @ [*((np.array(data.shape) - 1) / 2), 1])[:3]
    affine = np.eye(4)
    affine[:3, 3] = centre - (np.array(SHAPE) - 1) / 2
    finer = resample_from_to(nib.Nifti1Image(data, scan.affine), (SHAPE, affine))
    voxels = np.clip(np.asarray(finer.dataobj), 0, None)
    voxels *= 1000 / np.percentile(voxels, 99.9)
    voxels += np.abs(np.random.default_rng(0).normal(0, NOISE, SHAPE))
    return nib.Nifti1Image(np.round(voxels).astype(np.int16), affine)


def measure(checkout: Path, scan: Path, out: Path) -> dict[str, float]:
    """Seconds, processor seconds and MiB of one run of the command."""
    path = f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "mmh_ray.cli", "harmonize", str(scan), str(out)]
    start = time.perf_counter()
    child = os.spawnve(os.P_NOWAIT, sys.executable, command, environment)
    _, status, usage = os.wait4(child, 0)
    assert status == 0, status
    return {
        "seconds": time.perf_counter() - start,
        "processor seconds": usage.ru_utime + usage.ru_stime,
        "MiB": usage.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
