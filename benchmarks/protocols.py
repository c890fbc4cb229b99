"""Measures how alike, and how close to the truth, a model makes scans of unseen people at ten unseen protocols.

    python benchmarks/protocols.py LABEL_MAPS [MODEL] [--sequences T1w T2w FLAIR PDw] [--people 3] [--oracle]

LABEL_MAPS is the folder that the model was trained with (`simulation.label_maps`): only its last fifth, which training
leaves out, is used. MODEL is `mmh-base` by default. It is compared with N4 alone, and with N4 and histogram matching to
the mean of all scans. Brain masks are the true ones. Prints a line per method: PSNR and SSIM between the scans of one
person, nRMSE to the noise-free truth after one monotone curve for the cohort, and gradient correlation with the scan.
Scans that the model refuses are named and left out. With `--oracle` the truth replaces the network's image, on the
network's grid: this is the best result that the way back to the scan allows.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
import torch

from mmh_ray.config import GridConfig
from mmh_ray.errors import RefusedError
from mmh_ray.evaluation.metrics.agreement import (
    gradient_correlation,
    psnr,
    scale_by_percentiles,
    ssim,
    truth_bins,
    truth_error,
)
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.one_scan import Model, load
from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.intensity import correct_bias, match_histogram, mean_quantile_function, quantile_function
from mmh_ray.imaging.preprocess import Prepared
from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.examples import random_head
from mmh_ray.simulation.label_maps import label_maps_in
from mmh_ray.simulation.protocols import (
    InversionGradientEcho,
    InversionSpinEcho,
    Scan,
    SpinEcho,
    SpoiledGradientEcho,
)
from mmh_ray.simulation.scanner import canonical_image, random_oddity, render

GRID = GridConfig(1.5, (112, 136, 112))
PEOPLE, SITES = 8_000_000, 55

T1W = [
    (3.0, InversionGradientEcho(2300, 900, 7.1, 176, 9)),
    (3.0, InversionGradientEcho(2530, 1100, 7.2, 176, 7)),
    (1.5, InversionGradientEcho(2400, 1000, 8.6, 160, 8)),
    (3.0, InversionGradientEcho(2000, 880, 8, 192, 8)),
    (1.5, InversionGradientEcho(1900, 1100, 9, 128, 15)),
    (7.0, InversionGradientEcho(3000, 1100, 5.8, 224, 6)),
    (3.0, InversionGradientEcho(2200, 950, 6, 208, 11)),
    (3.0, SpoiledGradientEcho(18, 20)),
    (1.5, SpoiledGradientEcho(24, 30)),
    (1.5, SpoiledGradientEcho(12, 20)),
]
T2W = [(3200, 85), (4500, 100), (6000, 120), (2500, 90), (5600, 80), (3200, 105), (8000, 130), (3700, 95), (5000, 75)]
FLAIR = [
    (9000, 2350, 110),
    (9000, 2500, 120),
    (8000, 2250, 90),
    (11000, 2650, 125),
    (6000, 1950, 100),
    (5000, 1700, 140),
]
PDW = [(2500, 14), (3000, 20), (4000, 15), (2200, 30), (3500, 12), (2700, 25), (5000, 18), (3200, 10), (2400, 17)]
PROTOCOLS = {
    "T1w": T1W,
    "T2w": [(1.5 + 1.5 * (place % 2), SpinEcho(*times)) for place, times in enumerate([*T2W, (4000, 110)])],
    "FLAIR": [
        (1.5 + 1.5 * (place % 2), InversionSpinEcho(*times))
        for place, times in enumerate(
            [*FLAIR, (10000, 2500, 115), (9500, 2400, 85), (7000, 2100, 105), (8500, 2400, 130)]
        )
    ],
    "PDw": [(1.5 + 1.5 * (place % 2), SpinEcho(*times)) for place, times in enumerate([*PDW, (3800, 28)])],
}


def main() -> None:
    """Print a table per sequence."""
    parser = argparse.ArgumentParser()
    parser.add_argument("label_maps")
    parser.add_argument("model", nargs="?", default="mmh-base")
    parser.add_argument("--sequences", nargs="+", default=list(PROTOCOLS))
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--oracle", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    maps = label_maps_in(arguments.label_maps)
    held_out = maps[len(maps) - -(-len(maps) // 5) :]
    for sequence in arguments.sequences:
        compare(sequence, held_out, load(arguments.model), arguments.people, arguments.oracle)


class Oracle(Harmonizer):
    """A harmonizer with the truth in place of the network's image."""

    truth: Volume

    def sample_planes(self, prepared: Prepared, _label: int) -> np.ndarray:
        image = to_grid(self.truth.data, self.truth.affine, prepared.affine, prepared.image.shape)
        return (image * prepared.mask)[None]


def compare(sequence: str, label_maps: tuple[str, ...], model: Model, people: int, is_oracle: bool) -> None:
    """Simulate, harmonize and measure scans of every person at every protocol."""
    made: dict[str, dict[tuple[int, int], np.ndarray]] = {"raw": {}, "n4": {}, "n4+histogram": {}, "model": {}}
    truths, scans = {}, {}
    harmonizer = Oracle(model.harmonizer.bundle) if is_oracle else model.harmonizer
    for person in range(people):
        head = random_head(label_maps, PEOPLE + person, GRID)
        oddity = random_oddity(np.random.default_rng(person))
        truths[person] = canonical_image(head, sequence, oddity), head.brain
        affine = np.diag([GRID.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = -GRID.spacing_mm * np.array(GRID.shape) / 2
        if isinstance(harmonizer, Oracle):
            harmonizer.truth = Volume(truths[person][0], affine)
        for site, (field_t, protocol) in enumerate(PROTOCOLS[sequence]):
            rng = np.random.default_rng([SITES, site, person])
            image = render(head, Scan(sequence, field_t, protocol), rng, GRID.spacing_mm, oddity)
            volume, place = Volume(image, affine), (person, site)
            try:
                made["model"][place] = harmonizer.run(volume, sequence, head.brain).harmonized.data
            except RefusedError as error:
                print(f"{sequence}: person {person} at protocol {site} is left out of every method: {error}")
                continue
            scans[place] = made["raw"][place] = image
            made["n4"][place] = correct_bias(image, head.brain, volume.spacing)
    brains = {place: truths[place[0]][1] for place in scans}
    scaled = {place: image / np.quantile(image[brains[place]], 0.995) for place, image in made["n4"].items()}
    mean = mean_quantile_function(quantile_function(image[brains[place]]) for place, image in scaled.items())
    made["n4+histogram"] = {place: match_histogram(image, brains[place], mean) for place, image in scaled.items()}
    print(f"{sequence}: {people} people at {len(PROTOCOLS[sequence])} protocols")
    for method, images in made.items():
        scaled = {place: scale_by_percentiles(image, brains[place]) for place, image in images.items()}
        pairs = [(a, b) for a, b in combinations(sorted(scaled), 2) if a[0] == b[0]]
        psnrs = [psnr(scaled[a], scaled[b], brains[a]) for a, b in pairs]
        ssims = [ssim(scaled[a], scaled[b], brains[a]) for a, b in pairs[::3]]
        error = truth_error([truth_bins(image, *truths[place[0]]) for place, image in scaled.items()]).cohort
        edges = np.mean([gradient_correlation(scaled[place], scans[place], brains[place]) for place in scaled])
        agreement = f"PSNR {np.mean(psnrs):.1f} SSIM {np.mean(ssims):.3f}"
        print(f"{method:13s} {agreement} nRMSE {error:.3f} gradients {edges:.3f}")


if __name__ == "__main__":
    main()
