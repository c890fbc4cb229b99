"""Compares the published sampling (DDIM inversion of the scan, then DDIM sampling) with one step from noise.

    mmh phantom bids --config configs/demo.yaml
    mmh manifest bids manifest.parquet --config configs/demo.yaml
    python benchmarks/inversion.py manifest.parquet --truth bids/derivatives/truth [--model mmh-base]

The same weights harmonize the same travelers' scans in every way; the images are the network's, without detail
projection. Seconds are the total time per scan in this process.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from travelers import MEASURES, measure, read

from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.one_scan import load

WAYS = {
    "1 step from noise": {"steps": 1, "inversion_depth": 0},
    "6 steps from noise": {"steps": 6, "inversion_depth": 0},
    "6 inversion, 6 sampling": {"steps": 6, "inversion_depth": 6},
    "35 inversion, 25 sampling (published)": {"steps": 25, "inversion_depth": 35},
}


def main() -> None:
    """Harmonize in every way and print a table per sequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--model", default="mmh-base")
    parser.add_argument("--truth", required=True)
    parser.add_argument("--travelers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load(arguments.model).harmonizer.bundle
    scans = read(arguments.manifest, arguments.truth, arguments.travelers)
    sequences = [
        sequence for sequence in bundle.config.model.sequences if any(sequence == row["sequence"] for row, *_ in scans)
    ]
    rows = []
    for name, way in WAYS.items():
        harmonizer = Harmonizer(bundle, replace(bundle.config.harmonize, detail="model", **way))
        for sequence in sequences:
            chosen = [scan for scan in scans if scan[0]["sequence"] == sequence]
            start = time.perf_counter()
            images = [harmonizer.run(volume, sequence, mask).volume.data for _, volume, mask, _ in chosen]
            seconds = (time.perf_counter() - start) / len(chosen)
            rows.append({"way": name, "sequence": sequence, "seconds": seconds} | measure(chosen, images))
    for sequence in sequences:
        print(f"{sequence}: " + ", ".join(MEASURES) + ", seconds a scan")
        for row in (row for row in rows if row["sequence"] == sequence):
            print(f"  {row['way']:<40}" + "".join(f" {row[name]:9.4f}" for name in (*MEASURES, "seconds")))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
