"""Measures the quality figures of real scans, of the same scans damaged, and of images that are no MRI of adults.

    python -m benchmarks.quality BIDS                # every third image; --every 1 takes all
    python -m benchmarks.quality BIDS --json quality.json

Scans are only prepared: the figures need no model. For every group the table gives the range of each figure, and how
many scans would be refused as a scan of the sequence that the group names. The bounds in `config/quality.py` are based
on it.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmh_ray.bids.manifest import find_images
from mmh_ray.config import Config
from mmh_ray.errors import MMHError, RefusedError
from mmh_ray.imaging.preprocess import prepare_volume
from mmh_ray.imaging.volume import Volume, read_volume
from mmh_ray.quality.checks import check_scan
from mmh_ray.quality.describe import describe_scan
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render
from tests.phantoms import computed_tomography

CONFIG = Config()
FIGURES = ("registration", "coverage", "brain_ml", "fluid_contrast", "white_contrast")


def variants(volume: Volume, sequence: str) -> Iterator[tuple[str, str, Volume]]:
    """A scan, unchanged and damaged: name of the group, sequence that it is treated as, volume."""
    other = "T2w" if sequence == "T1w" else "T1w"
    yield f"{sequence} as {sequence}", sequence, volume
    yield f"{sequence} as {other}", other, volume
    flipped = np.array(volume.affine)
    flipped[2] *= -1  # superior becomes inferior
    yield f"{sequence} upside down", sequence, Volume(volume.data, flipped, volume.header)
    small = np.diag([0.7, 0.7, 0.7, 1.0]) @ volume.affine
    yield f"{sequence} at 0.7 of its size", sequence, Volume(volume.data, small, volume.header)
    noise = np.random.default_rng(0).rayleigh(1, volume.data.shape).astype(np.float32)
    yield f"noise as {sequence}", sequence, volume.like(noise)


def coarse(seed: int, sequence: str) -> Volume:
    """A simulated head with its scalp at 4 mm, from one of the named scanners."""
    anatomy = simulate_anatomy(Person(seed, scalp=True), 4.0)
    scanner = SITES[seed % len(SITES)]
    scan = render(anatomy, scanner, sequence, np.random.default_rng(seed), 4.0)
    return Volume(scan.astype(np.float32), anatomy.affine)


def main() -> None:
    """Prepare every scan and its damaged copies, and print the ranges by group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids")
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    images = [
        row for row in find_images(arguments.bids, require_site=False) if row["sequence"] in ("T1w", "T2w", "FLAIR")
    ]
    rows = defaultdict(list)
    images.sort(key=lambda row: row["sequence"], reverse=True)  # some of every sequence
    for row in images[:: arguments.every]:
        for group, sequence, volume in variants(read_volume(row["uri"]), row["sequence"]):
            rows[group].append(measure(volume, sequence) | {"image_id": row["image_id"]})
    for seed in range(4):
        for sequence in ("T1w", "T2w"):
            rows[f"CT as {sequence}"].append(measure(computed_tomography(seed), sequence))
    for seed in range(8):
        for sequence in ("T1w", "T2w"):
            volume = coarse(seed, sequence)
            for name in ("T1w", "T2w"):
                rows[f"4 mm {sequence} as {name}"].append(measure(volume, name))
    print(f"{'group':<26} {'n':>3} {'refused':>8}" + "".join(f"{name:>18}" for name in FIGURES))
    for group, figures in rows.items():
        cells = []
        for name in FIGURES:
            values = [row[name] for row in figures if name in row]
            cells.append(f"{min(values):.2f} to {max(values):.2f}" if values else "-")
        refused = sum(row["refused"] for row in figures)
        print(f"{group:<26} {len(figures):>3} {refused:>8}" + "".join(f"{cell:>18}" for cell in cells))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(volume: Volume, sequence: str) -> dict[str, float]:
    """The figures of a scan, and whether it is refused as a scan of a sequence."""
    try:
        prepared = prepare_volume(volume, None, CONFIG.grid, CONFIG.prepare)
    except MMHError:
        return {"refused": True}
    figures = describe_scan(volume, prepared.brain, prepared.registration)
    try:
        check_scan(sequence, figures, CONFIG.quality)
    except RefusedError:
        return figures | {"refused": True}
    return figures | {"refused": False}


if __name__ == "__main__":
    main()
