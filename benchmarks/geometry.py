"""Checks that harmonized images have the geometry of their scans.

    python benchmarks/geometry.py OUT

For every image that is done or skipped in OUT's ledger, compares shape, affine (to 1e-5 mm) and the codes of qform and
sform with the scan, and checks that all voxels are finite and not negative. Prints the differences and the number of
images; the exit code is 1 if any differs. OUT was made by `mmh harmonize` with `--space native --intensity unit`, the
defaults.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from mmh_ray.bids.ledger import current_rows
from mmh_ray.bids.rows import MADE


def differences(source: Path, output: Path) -> list[str]:
    """Names of the checks that an image fails."""
    scan = nib.load(source)
    image = nib.load(output)
    data = image.get_fdata(dtype=np.float32)
    checks = {
        "shape": scan.shape[:3] == image.shape,  # a fourth axis of length 1 is left out
        "affine": np.allclose(scan.affine, image.affine, rtol=0, atol=1e-5),
        "codes": all(scan.header[f"{form}_code"] == image.header[f"{form}_code"] for form in ("qform", "sform")),
        "finite": np.isfinite(data).all(),
        "not negative": data.min() >= 0,
    }
    return [name for name, is_met in checks.items() if not is_met]


def main() -> None:
    """Check every image and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rows = [row for row in current_rows(out) if row["status"] in MADE]
    failures = {row["image_id"]: differences(Path(row["source"]), out / row["output"]) for row in rows}
    for name, failed in failures.items():
        if failed:
            print(f"{name}: {', '.join(failed)}")
    print(f"{len(failures)} images, {sum(map(bool, failures.values()))} unlike their scans")
    sys.exit(any(failures.values()))


if __name__ == "__main__":
    main()
