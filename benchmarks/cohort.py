"""Harmonizes a thousand small scans, 3 % of them bad; the run is killed in the middle and started again.

    python benchmarks/cohort.py [--model mmh-base]
    python benchmarks/cohort.py --scans 100 --json cohort.json

Makes the archive: few anatomies, eight scanners, different noise and bytes in every file. With 34 scans or more there
is at least one bad file of each kind. Runs `mmh harmonize`, kills the driver with SIGKILL when 40 % are done, runs it
again to the end, and checks the ledger: every good scan is harmonized, or refused with its reason (these are counted);
every bad file has a row with its reason; no file is half-written. Memory is the resident set size of the driver and of
the largest Ray worker, for each tenth of the scans.
"""

from __future__ import annotations

import argparse
import gzip
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from memory import MIB, Peak

from mmh_ray.bids.ledger import current_rows
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, canonical, render

SPACING_MM, PEOPLE, KILLED_AT = 4.0, 12, 0.4
Image = nib.Nifti1Image


def _nifti(data: np.ndarray, affine: np.ndarray) -> bytes:
    return Image(data, affine).to_bytes()


def _with_voxels_of(value: float) -> Callable[[np.ndarray, np.ndarray], bytes]:
    """Sets a few voxels to a value."""

    def damage(data: np.ndarray, affine: np.ndarray) -> bytes:
        damaged = data.copy()
        damaged[3, 4, :7] = value
        return _nifti(damaged, affine)

    return damage


def _flat(data: np.ndarray, affine: np.ndarray) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_sform(affine * [0, 1, 1, 1], code="scanner")  # nibabel refuses to write such an affine of an image
    return Image(data, None, header).to_bytes()


def _colours(data: np.ndarray, affine: np.ndarray) -> bytes:
    return _nifti(np.zeros(data.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), affine)


BAD: dict[str, Callable[[np.ndarray, np.ndarray], bytes]] = {
    "empty": lambda data, affine: b"",
    "cut short": lambda data, affine: _nifti(data, affine)[:20000],
    "gzip cut short": lambda data, affine: gzip.compress(_nifti(data, affine), 1)[:20000],
    "not NIfTI": lambda data, affine: b"not an image" * 1000,
    "NaN": _with_voxels_of(np.nan),
    "infinite": _with_voxels_of(np.inf),
    "constant": lambda data, affine: _nifti(np.full_like(data, 7), affine),
    "4-D": lambda data, affine: _nifti(np.stack([data] * 3, -1), affine),
    "RGB": _colours,
    "single slice": lambda data, affine: _nifti(data[:, :, 20:21], affine),
    "flat affine": _flat,
    "voxels of 0.001 mm": lambda data, affine: _nifti(data, affine * [1e-3, 1e-3, 1e-3, 1]),
    "noise": lambda data, affine: _nifti(np.random.default_rng(0).random(data.shape, np.float32), affine),
    "name with a space": _nifti,
    "second file": _nifti,
    "link out of the archive": _nifti,
}
"""Kinds of bad files: each makes the file's content from a good scan. In the last three only name or place is wrong."""


def make_archive(folder: Path, scans: int) -> dict[str, str]:
    """Write the scans; returns what is wrong with each bad one by ``image_id``."""
    people = [simulate_anatomy(Person(900 + number, scalp=True), SPACING_MM) for number in range(PEOPLE)]
    rng, bad = np.random.default_rng(0), {}
    (folder / "bids").mkdir(parents=True)
    period = max(2, min(33, scans // (len(BAD) + 1)))
    for number in range(scans):
        anatomy, sequence = people[number % PEOPLE], ("T1w", "T2w")[number // PEOPLE % 2]
        scan = render(anatomy, SITES[number % len(SITES)], sequence, rng, SPACING_MM).astype(np.float32)
        content, kind = Image(scan, anatomy.affine).to_bytes(), None
        if number % period == 0:
            kind = list(BAD)[number // period % len(BAD)]
            content = BAD[kind](scan, anatomy.affine)
        elif number % 99 == 49:  # the other sequence under a wrong name
            kind, other = "another sequence", "T1w" if sequence == "T2w" else "T2w"
            content = Image(canonical(anatomy, other, SPACING_MM).astype(np.float32), anatomy.affine).to_bytes()
        path = folder / f"bids/sub-{number:05d}/anat/sub-{number:05d}_{sequence}.nii"
        path.parent.mkdir(parents=True)
        image_id = _put(path, content, kind)
        if kind:
            bad[image_id] = kind
    return bad


def _put(path: Path, content: bytes, kind: str | None) -> str:
    """Write a file to the place that fits its kind; returns the ``image_id`` of its row, a path if the name is bad."""
    image_id = path.stem
    if kind == "link out of the archive":
        outside = path.parents[3] / path.name
        outside.write_bytes(content)
        path.symlink_to(outside)
        return image_id
    if kind == "second file":
        path.write_bytes(content)
        path, content = path.with_suffix(".nii.gz"), gzip.compress(content, 1)
    elif kind == "gzip cut short":
        path = path.with_suffix(".nii.gz")
    elif kind == "name with a space":
        path = path.with_stem(f"{image_id} copy")
    path.write_bytes(content)
    return "/".join(path.parts[-3:]) if kind in ("second file", "name with a space") else image_id


def run(folder: Path, model: str, kill_at: int | None) -> dict[str, Any]:
    """Run `mmh harmonize` to its end, or until ``kill_at`` rows are in the ledger; peaks for each tenth of images."""
    out = folder / "out"
    command = [sys.executable, "-m", "mmh_ray.cli", "harmonize", str(folder / "bids"), str(out), "--model", model]
    images = len(list((folder / "bids").iterdir()))
    before, start, peaks = _rows(out), time.monotonic(), []
    driver = subprocess.Popen(command)
    while driver.poll() is None:
        with Peak(driver.pid) as peak:
            next_tenth = _rows(out) + images // 10
            while driver.poll() is None and _rows(out) < next_tenth and not (kill_at and _rows(out) >= kill_at):
                time.sleep(0.5)
        peaks.append({"driver": peak.driver // MIB, "worker": peak.worker // MIB})
        if kill_at and _rows(out) >= kill_at:
            driver.send_signal(signal.SIGKILL)
            break
    code, seconds = driver.wait(), time.monotonic() - start
    return {"code": code, "rows_before": before, "rows": _rows(out), "seconds": round(seconds), "peaks": peaks}


def _rows(out: Path) -> int:
    return len(current_rows(out)) if out.exists() else 0


def check(folder: Path, bad: dict[str, str]) -> dict[str, Any]:
    """Compare ledger and files with the archive."""
    out, good, reasons, refused = folder / "out", 0, {}, {}
    for row in current_rows(out):
        kind = bad.pop(row["image_id"], None)
        if kind is None and row["status"] == "refused":
            refused[row["image_id"]] = row["reason"]
        elif kind is None:
            assert row["status"] in ("done", "skipped"), row
            assert np.isfinite(nib.load(out / row["output"]).get_fdata()).all(), row
            good += 1
        else:
            assert row["status"] in ("failed", "refused"), (kind, row)
            reasons[kind] = row["reason"].removeprefix(f"{row['source']}: ")
    assert not bad, f"no row for {sorted(bad)}"
    assert not list(out.rglob(".partial-*"))
    return {"harmonized": good, "refused": refused, "reasons": reasons}


def main() -> None:
    """Make, run, kill, run, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mmh-base")
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bad = make_archive(folder, arguments.scans)
        bad_files = len(bad)
        killed_run = run(folder, arguments.model, round(KILLED_AT * arguments.scans))
        runs = [killed_run, run(folder, arguments.model, None)]
        results = check(folder, bad)
    for number, figures in enumerate(runs, 1):
        rows = f"rows {figures['rows_before']} -> {figures['rows']}"
        print(f"run {number}: exit code {figures['code']}, {rows}, {figures['seconds']} s")
        for peak in figures["peaks"]:
            print("  driver {driver} MiB, largest worker {worker} MiB".format(**peak))
    refused = f"{len(results['refused'])} good ones refused"
    print(f"{results['harmonized']} harmonized, {refused}, {bad_files} bad ones each with a reason:")
    for kind, reason in {**results["reasons"], **results["refused"]}.items():
        print(f"  {kind}: {reason}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": runs, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
