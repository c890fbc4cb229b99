"""Draws an axial slice of real scans: unchanged, after N4, and harmonized.

    python benchmarks/real_sites.py OUT.jpg SCAN.nii.gz [SCAN.nii.gz ...] [--sequence T1w] [--model mmh-base]
        [--columns 6]

Every scan is shown in unit intensity (99.5th percentile of its brain at 1), resampled to 1 mm, 10 mm above the middle
of its brain.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch

from mmh_ray.harmonization.one_scan import Model, load
from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.intensity import correct_bias, robust_scaling
from mmh_ray.imaging.volume import read_volume

SHAPE = (170, 210, 1)
ABOVE_MM = 10.0
ROWS = ("as it came", "N4", "mmh-base")


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("scans", nargs="+")
    parser.add_argument("--sequence", default="T1w")
    parser.add_argument("--model", default="mmh-base")
    parser.add_argument("--columns", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model)
    shown = [slices(path, arguments.sequence, model) for path in arguments.scans]
    bands = -(-len(shown) // arguments.columns)
    size = (1.6 * arguments.columns, 2 * len(ROWS) * bands)
    figure, axes = plt.subplots(len(ROWS) * bands, arguments.columns, figsize=size, facecolor="black", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, images in enumerate(shown):
        band, column = divmod(number, arguments.columns)
        for row, image in enumerate(images):
            axis = axes[band * len(ROWS) + row, column]
            axis.imshow(image, cmap="gray", vmin=0, vmax=1.1)
            if column == 0:
                axis.text(4, 4, ROWS[row], color="white", fontsize=10, va="top")  # in the black corner above the head
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    figure.savefig(arguments.out, dpi=120, facecolor="black")


def slices(path: str, sequence: str, model: Model) -> list[np.ndarray]:
    """The same slice ``(A, R)`` of the scan, of the scan after N4 and of the harmonized image, anterior up."""
    volume = read_volume(path)
    scan = model.harmonizer.run(volume, sequence)
    brain = scan.prepared.brain
    corrected = correct_bias(volume.data, brain, volume.spacing)
    unit = [robust_scaling(data, brain).apply(data) for data in (volume.data, corrected)]
    middle = volume.affine @ np.append(np.argwhere(brain).mean(axis=0), 1)
    grid = np.eye(4)
    grid[:3, 3] = middle[:3] - np.array(SHAPE) / 2 + [0, 0, ABOVE_MM]
    return [to_grid(data, volume.affine, grid, SHAPE)[:, :, 0].T[::-1] for data in (*unit, scan.harmonized.data)]


if __name__ == "__main__":
    main()
