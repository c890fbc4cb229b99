"""Measures how well brains are found, on real heads with label maps and on simulated heads that training has not seen.

    python benchmarks/brain.py real BIDS [--most N]
    python benchmarks/brain.py simulated LABEL_MAPS [--heads N]

Real: scans with `*_dseg.nii.gz` in BIDS/derivatives. Sensitivity is the share of the labelled voxels inside the mask.
Dice compares the mask with the hull of the labels, closed by 6 mm and without holes. Simulated: the last four label
maps of the folder, N heads per sequence on a 2 mm grid; sensitivity and Dice are taken with the true hull. Prints a
line per scan, then median and worst.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from mmh_ray.config import GridConfig
from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.ground import find_ground
from mmh_ray.imaging.mask import find_brain
from mmh_ray.imaging.volume import Volume, read_volume
from mmh_ray.simulation.label_maps import label_maps_in
from mmh_ray.simulation.protocols import CANONICAL
from mmh_ray.simulation.train_brain import VALIDATION_MAPS
from mmh_ray.simulation.whole_heads import whole_head

CLOSING_MM = 6.0
SPACING_MM = 2.0
SIMULATED = GridConfig(SPACING_MM, (112, 128, 120))
FIRST_SEED = 5_000_000

Case = tuple[str, Volume, np.ndarray, np.ndarray]
"""Name, scan, labelled voxels, hull."""


def labelled(bids: Path, most: int | None) -> Iterator[Case]:
    """Scans that have a skull and labels."""
    for path in sorted(bids.glob("derivatives/**/*_dseg.nii.gz"))[:most]:
        subject, session = path.parts[-4:-2]
        stem = path.name.split("_desc-")[0]
        scan = read_volume(str(bids / subject / session / "anat" / f"{stem}_T1w.nii.gz"))
        if find_ground(scan).stripped:
            continue
        labels = read_volume(str(path))
        inside = to_grid((labels.data > 0).astype(np.float32), labels.affine, scan.affine, scan.data.shape) > 0.5
        yield stem, scan, inside, hull(inside, scan.spacing)


def hull(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The labels with the sulci and ventricles filled, ``(I, J, K)`` bool."""
    margin = int(np.ceil(CLOSING_MM / min(spacing))) + 1
    padded = np.pad(inside, margin)
    grown = ndimage.distance_transform_edt(~padded, spacing) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, spacing) > CLOSING_MM
    return ndimage.binary_fill_holes(closed | padded)[(slice(margin, -margin),) * 3]


def simulated(folder: Path, heads: int) -> Iterator[Case]:
    """Heads made from label maps that were not used in training, in every sequence."""
    people = label_maps_in(folder)[-VALIDATION_MAPS:]
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    for number, sequence in enumerate(CANONICAL):
        for head in range(heads):
            seed = FIRST_SEED + 1000 * number + head
            image, distance_mm = whole_head(people, seed, SIMULATED, sequence)
            brain = distance_mm > 0
            yield f"{sequence} {head}", Volume(image, affine), brain, brain


def main() -> None:
    """Find the brains, and print sensitivity, Dice and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("real", "simulated"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int)
    parser.add_argument("--heads", type=int, default=6)
    arguments = parser.parse_args()
    is_real = arguments.kind == "real"
    cases = labelled(arguments.folder, arguments.most) if is_real else simulated(arguments.folder, arguments.heads)
    rows = []
    for name, scan, inside, true in cases:
        start = time.perf_counter()
        mask = find_brain(scan).mask
        seconds = time.perf_counter() - start
        sensitivity = float(mask[inside].mean())
        dice = float(2 * (mask & true).sum() / (mask.sum() + true.sum()))
        rows.append((sensitivity, dice, seconds))
        print(f"{name:28} sensitivity {sensitivity:.4f}  Dice {dice:.4f}  {seconds:.1f} s", flush=True)
    figures = np.array(rows)
    for title, column, worst in (("sensitivity", 0, np.min), ("Dice", 1, np.min), ("seconds", 2, np.max)):
        print(f"{title}: median {np.median(figures[:, column]):.4f}, worst {worst(figures[:, column]):.4f}")


if __name__ == "__main__":
    main()
