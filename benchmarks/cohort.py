"""A thousand small scans with 3 % of bad ones among them, killed in the middle and started again.

    python benchmarks/cohort.py [--model mmh-base]
    python benchmarks/cohort.py --scans 100 --json cohort.json

Makes the archive (few anatomies, eight scanners, every file with noise and bytes of its own; of 34 scans or more each kind of bad file at
least one), runs `mmh harmonize`, kills the driver with
SIGKILL when 40 % are done, runs it again to the end, and checks the ledger against what was put in: every good scan
harmonized or refused with its reason (they are counted), every bad one a row with its reason, no half-written file.
Memory is the resident set size of the driver and of the largest Ray worker, for each tenth of the scans.
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


def _with(data: np.ndarray, affine: np.ndarray, **header: Any) -> bytes:
    return Image(data, affine, **header).to_bytes()


def _spoilt(value: float) -> Callable[[np.ndarray, np.ndarray], bytes]:
    """A few voxels of that value."""

    def spoil(data: np.ndarray, affine: np.ndarray) -> bytes:
        broken = data.copy()
        broken[3, 4, :7] = value
        return _with(broken, affine)

    return spoil


def _flat(data: np.ndarray, affine: np.ndarray) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_sform(affine * [0, 1, 1, 1], code="scanner")  # an affine given to the image is refused on writing
    return Image(data, None, header).to_bytes()


def _colours(data: np.ndarray, affine: np.ndarray) -> bytes:
    return _with(np.zeros(data.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), affine)


BAD: dict[str, Callable[[np.ndarray, np.ndarray], bytes]] = {
    "empty": lambda data, affine: b"",
    "cut short": lambda data, affine: _with(data, affine)[:20000],
    "gzip cut short": lambda data, affine: gzip.compress(_with(data, affine), 1)[:20000],
    "not NIfTI": lambda data, affine: b"not an image" * 1000,
    "NaN": _spoilt(np.nan),
    "infinite": _spoilt(np.inf),
    "constant": lambda data, affine: _with(np.full_like(data, 7), affine),
    "4-D": lambda data, affine: _with(np.stack([data] * 3, -1), affine),
    "RGB": _colours,
    "single slice": lambda data, affine: _with(data[:, :, 20:21], affine),
    "flat affine": _flat,
    "voxels of 0.001 mm": lambda data, affine: _with(data, affine * [1e-3, 1e-3, 1e-3, 1]),
    "noise": lambda data, affine: _with(np.random.default_rng(0).random(data.shape, np.float32), affine),
    "name with a space": _with,
    "second file": _with,
    "link out of the archive": _with,
}
"""What can be wrong with a file: its content, made from a good scan. Of the last three only name and place are wrong."""


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
    """Write a file where its kind wants it; returns the key of its row, which is its path where it cannot be the image's name."""
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
    """`mmh harmonize` until its end, or until that many rows are in the ledger; peaks for each tenth of them."""
    out = folder / "out"
    command = [sys.executable, "-m", "mmh_ray.cli", "harmonize", str(folder / "bids"), str(out), "--model", model]
    images = len(list((folder / "bids").iterdir()))
    before, start, peaks = _rows(out), time.monotonic(), []
    driver = subprocess.Popen(command)
    while driver.poll() is None:
        with Peak(driver.pid) as peak:
            wanted = _rows(out) + images // 10
            while driver.poll() is None and _rows(out) < wanted and not (kill_at and _rows(out) >= kill_at):
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
    """Compare ledger and files with what was put in."""
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
        kinds = len(bad)
        runs = [run(folder, arguments.model, round(KILLED_AT * arguments.scans)), run(folder, arguments.model, None)]
        found = check(folder, bad)
    for number, figures in enumerate(runs, 1):
        print(
            f"run {number}: exit code {figures['code']}, rows {figures['rows_before']} -> {figures['rows']}, {figures['seconds']} s"
        )
        for peak in figures["peaks"]:
            print("  driver {driver} MiB, largest worker {worker} MiB".format(**peak))
    print(
        f"{found['harmonized']} harmonized, {len(found['refused'])} good ones refused, {kinds} bad ones each with a reason:"
    )
    for kind, reason in {**found["reasons"], **found["refused"]}.items():
        print(f"  {kind}: {reason}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": runs, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
