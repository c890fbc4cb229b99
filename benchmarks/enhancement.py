"""Measures how much of the contrast of a simulated enhancing rim a model keeps.

    python benchmarks/enhancement.py SCAN_T1w.nii.gz [SCAN_T1w.nii.gz ...] [--model mmh-base]

A dark ball of 10 mm radius with a rim of 4 mm, at 1.3 and 1.5 times white matter, is put into each scan, 25 and 15 mm
from the middle of its brain along the first and the third axis. "Kept" is the rim's excess over white matter after
harmonizing, divided by that before.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from mmh_ray.harmonization.one_scan import load
from mmh_ray.imaging.volume import read_volume


def main() -> None:
    """Print a line per scan and rim."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scans", nargs="+")
    parser.add_argument("--model", default="mmh-base")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    harmonizer = load(arguments.model).harmonizer
    for path in arguments.scans:
        volume = read_volume(path)
        brain = harmonizer.run(volume, "T1w").prepared.brain
        places = np.moveaxis(np.indices(brain.shape), 0, -1) * volume.spacing
        middle = places[brain].mean(axis=0) + np.array([25, 0, 15])
        distance_mm = np.linalg.norm(places - middle, axis=-1)
        white = np.quantile(volume.data[brain], 0.9)
        rim = brain & (distance_mm > 10) & (distance_mm < 14)
        core = brain & (distance_mm <= 10)
        white_matter = brain & (distance_mm > 25) & (np.abs(volume.data / white - 1) < 0.03)
        for times in (1.3, 1.5):
            data = np.where(core, 0.4 * white, np.where(rim, times * white, volume.data)).astype(np.float32)
            harmonized = harmonizer.run(volume.like(data), "T1w", brain).harmonized.data
            kept = (np.median(harmonized[rim]) / np.median(harmonized[white_matter]) - 1) / (times - 1)
            print(f"{path}: {times} times white matter, kept {kept:.2f}", flush=True)


if __name__ == "__main__":
    main()
