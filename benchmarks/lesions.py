"""Measures whether lesions, cavities, wide ventricles and tumours are preserved by a model.

    python -m benchmarks.lesions [--model mmh-base]

Simulated people that training has not seen are scanned by random scanners and harmonized. They have one of:

- lesions, a resection cavity or wide ventricles (`ventricles=3`), which training shows in other people;
- a tumour with a fluid core, which training never shows;
- ventricles of three times their size that replace the brain around them, while those of training push it aside.

Contrast is the mean intensity of the place minus that of its surroundings (two voxels around). Volume counts the voxels
beyond the middle between the two. Both are divided by those of the noise-free truth in the unified domain. They are
also given for the scan after N4 and histogram matching, and for the scan after N4 and the best increasing map of its
intensities (isotonic regression of the truth on it): scanners blur and order tissues differently, and this is how much
of the place the scan shows.

`of shown` is the contrast divided by that of the best map. `of curve` is the contrast divided by that of the scan after
N4 and the increasing map that comes closest to the harmonized image: such a map only changes the style, so a difference
from it was removed or added by the method. `elsewhere` is the largest difference from the truth (99.9th percentile)
away from the place, where invented structures would show.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from sklearn.isotonic import IsotonicRegression

from mmh_ray.harmonization.one_scan import load
from mmh_ray.imaging.intensity import correct_bias, match_histogram
from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SEQUENCES, canonical, random_scanner, render
from mmh_ray.simulation.phantom_people import canonical_quantiles, unifying_map
from tests.phantoms import CSF, LESION, contrast_and_volume, hydrocephalus, tumour

FIRST_SEED = 5000
"""First seed of people that are neither in training nor in the phantom archive."""


def people(seed: int, spacing: float) -> dict[str, tuple[Anatomy, np.ndarray]]:
    """A person and the place that must be preserved, by kind."""
    number = FIRST_SEED + seed
    lesions = simulate_anatomy(Person(number, lesions=5), spacing)
    cavity = simulate_anatomy(Person(number, cavities=1), spacing)
    plain = simulate_anatomy(Person(number), spacing)
    wide = simulate_anatomy(Person(number, ventricles=3), spacing)
    return {
        "lesions": (lesions, lesions.fractions[LESION] > 0.5),
        "cavity": (cavity, (cavity.fractions[CSF] > 0.8) & (plain.fractions[CSF] < 0.2)),
        "wide ventricles": (wide, (wide.fractions[CSF] > 0.8) & (plain.fractions[CSF] < 0.2)),
        "ventricles x 3": hydrocephalus(plain),
        "tumour": tumour(plain, seed),
    }


def preservation(image: np.ndarray, truth: np.ndarray, place: np.ndarray, brain: np.ndarray) -> dict[str, float]:
    """Contrast and volume, divided by those of the truth, and the largest difference elsewhere."""
    contrast, volume = contrast_and_volume(image, place, brain) / contrast_and_volume(truth, place, brain)
    elsewhere = brain & ~ndimage.binary_dilation(place, iterations=3)
    worst = float(np.percentile(np.abs(image - truth)[elsewhere], 99.9))
    return {"contrast": float(contrast), "volume": float(volume), "elsewhere": worst}


def best_map(scan: np.ndarray, target: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The scan after the increasing map of its intensities that comes closest to another image."""
    mapped = np.zeros_like(scan)
    mapped[brain] = IsotonicRegression().fit_transform(scan[brain], target[brain])
    return mapped


def main() -> None:
    """Harmonize every kind at several scanners and print the median and the range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mmh-base")
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    harmonizer = load(arguments.model).harmonizer
    bundle = harmonizer.bundle
    spacing = bundle.config.grid.spacing_mm
    canonicals = canonical_quantiles(SEQUENCES, bundle.config.grid, bundle.config.train.seed)
    rows = defaultdict(list)
    for seed in range(arguments.people):
        for kind, (anatomy, place) in people(seed, spacing).items():
            for label, sequence in enumerate(SEQUENCES):
                rng = np.random.default_rng([seed, label])
                scan = render(anatomy, random_scanner(rng), sequence, rng, spacing).astype(np.float32)
                quantiles = bundle.quantiles[bundle.sequence_index(sequence), 0].numpy()
                truth = unifying_map(canonicals[sequence], quantiles).apply(canonical(anatomy, sequence, spacing))
                corrected = correct_bias(scan, anatomy.brain, (spacing,) * 3)
                images = {
                    "harmonized": harmonizer.run(Volume(scan, anatomy.affine), sequence, anatomy.brain).volume.data,
                    "N4 + histogram matching": match_histogram(corrected, anatomy.brain, quantiles),
                    "N4 + best map": best_map(corrected, truth, anatomy.brain),
                }
                of_methods = {
                    method: preservation(image, truth, place, anatomy.brain) for method, image in images.items()
                }
                for method, figures in of_methods.items():
                    style_only = best_map(corrected, images[method], anatomy.brain)
                    curve = preservation(style_only, truth, place, anatomy.brain)
                    figures["of shown"] = figures["contrast"] / of_methods["N4 + best map"]["contrast"]
                    figures["of curve"] = figures["contrast"] / curve["contrast"]
                    rows[kind, sequence, method].append(figures)
    print("Medians (smallest to largest)")
    print(f"{'kind':<15} {'':<4} {'method':<24}" + "".join(f" {name:>22}" for name in next(iter(rows.values()))[0]))
    for (kind, sequence, method), figures in rows.items():
        values = {name: np.array([row[name] for row in figures]) for name in figures[0]}
        cells = [f"{np.median(v):.2f} ({v.min():.2f} to {v.max():.2f})" for v in values.values()]
        print(f"{kind:<15} {sequence:<4} {method:<24}" + "".join(f" {cell:>22}" for cell in cells))
    if arguments.json:
        arguments.json.write_text(json.dumps([[*key, value] for key, value in rows.items()], indent=2) + "\n")


if __name__ == "__main__":
    main()
