"""Harmonizes many small scans on a cluster of a head and two nodes, one of which is killed in the middle.

    python benchmarks/node_loss.py [--scans 200] [--killed-at 0.3]

Makes the scans (few anatomies, different levels and noise in every file), starts a head without CPUs and two nodes of
two CPUs on this machine, runs `mmh harmonize` with mmh-base, and kills a node with all of its processes when a share of
the images is done. Prints the numbers of rows and of complete files, the reasons of failures, and seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from two_nodes import running, two_nodes, wait_until

from mmh_ray.bids.derivatives import sidecar_path
from mmh_ray.bids.ledger import current_rows
from mmh_ray.bids.rows import Status
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

SPACING_MM, PEOPLE = 4.0, 8
NOISE = 10.0
"""Standard deviation of the noise; the brightest tissue has about 1000."""


def main() -> None:
    """Make the scans, run, kill a node, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--killed-at", type=float, default=0.3, help="share of the images that are done then")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, two_nodes() as (cluster, nodes):
        bids, out = Path(folder, "bids"), Path(folder, "out")
        make_scans(bids, arguments.scans)
        start = time.perf_counter()
        rows = round(arguments.killed_at * arguments.scans)
        with running(cluster.address, "harmonize", str(bids), str(out)) as driver:
            wait_until(lambda: out.exists() and len(current_rows(out)) >= rows, driver, 0.2)
            killed = time.perf_counter()
            cluster.remove_node(nodes[0], allow_graceful=False)
            print(json.dumps({"seconds until the loss": round(killed - start)}), flush=True)
            code = driver.wait()
            print(json.dumps({"code": code, "seconds after the loss": round(time.perf_counter() - killed)}))
        print(json.dumps(results(out)))


def make_scans(bids: Path, number: int) -> None:
    """Write an archive of T1w scans of a few people."""
    random = np.random.default_rng(0)
    anatomies = [simulate_anatomy(Person(person), SPACING_MM) for person in range(PEOPLE)]
    for scan in range(number):
        anatomy = anatomies[scan % PEOPLE]
        voxels = (800 + scan) * canonical(anatomy, "T1w", SPACING_MM)
        voxels += np.abs(random.normal(0, NOISE, voxels.shape))
        path = bids / f"sub-{scan:04d}/anat/sub-{scan:04d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.round(voxels).astype(np.int16), anatomy.affine), path)


def results(out: Path) -> dict[str, Any]:
    """Rows by status, reasons of those without a result, and complete files."""
    rows = current_rows(out)
    files = list(out.rglob("*_desc-harmonized_*.nii.gz"))
    whole = [path for path in files if np.isfinite(nib.load(path).get_fdata()).all() and sidecar_path(path).is_file()]
    return {
        "rows": dict(Counter(row["status"] for row in rows)),
        "images with a row": len({row["image_id"] for row in rows}),
        "files": len(files),
        "whole files": len(whole),
        "half-written": len(list(out.rglob(".partial-*"))),
        "reasons": Counter(row["reason"] for row in rows if row["status"] not in (Status.DONE, Status.SKIPPED)),
    }


if __name__ == "__main__":
    main()
