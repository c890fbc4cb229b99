"""Do harmonized images lie where their scans lie?

    python benchmarks/geometry.py OUT

For every image that OUT's ledger calls done or skipped: shape, affine (to 1e-5 mm), codes of both forms, and that all voxels are
finite and none is negative. Prints what differs and how many images were looked at; ends with 1 if any differs. OUT was made by
`mmh harmonize` with `--space native --intensity unit`, the defaults.
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
    """What an image has unlike its scan."""
    scan, image = nib.load(source), nib.load(output)
    data = image.get_fdata(dtype=np.float32)
    same = {
        "shape": scan.shape[:3] == image.shape,  # a fourth axis of length 1 is left out
        "affine": np.allclose(scan.affine, image.affine, rtol=0, atol=1e-5),
        "codes": all(scan.header[f"{form}_code"] == image.header[f"{form}_code"] for form in ("qform", "sform")),
        "finite": np.isfinite(data).all(),
        "not negative": data.min() >= 0,
    }
    return [name for name, holds in same.items() if not holds]


def main() -> None:
    """Look at every image and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rows = [row for row in current_rows(out) if row["status"] in MADE]
    found = {row["image_id"]: differences(Path(row["source"]), out / row["output"]) for row in rows}
    for name, unlike in found.items():
        if unlike:
            print(f"{name}: {', '.join(unlike)}")
    print(f"{len(found)} images, {sum(map(bool, found.values()))} unlike their scans")
    sys.exit(any(found.values()))


if __name__ == "__main__":
    main()
