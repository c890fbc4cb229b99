"""Measures whether lesions of real scans are preserved in harmonized images.

    python benchmarks/real_lesions.py BIDS OUT

For every lesion mask of BIDS/derivatives/labels and every harmonized image of the same session in OUT (made by `mmh
harmonize`), gives the contrast of the lesion with its surroundings two to four voxels away, in standard deviations of
the surroundings. Also gives the area under the ROC curve of separating lesion and surroundings by intensity (1 or 0:
every voxel; .5: not at all), which no increasing intensity curve changes. Both are given for the scan and for the
harmonized image. The contrast is also given for the scan after the increasing curve that comes closest to the
harmonized image: a new style changes contrasts by itself, and the method gained or lost the difference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from mmh_ray.bids.entities import output_path, parse
from mmh_ray.imaging.volume import read_volume
from mmh_ray.simulation.protocols import SEQUENCES


def main() -> None:
    """Print a row per image and lesion mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    contrasts = f"{'contrast: scan':>15} {'its curve':>10} {'after':>6}"
    print(f"{'image':<24} {'voxels':>7} {contrasts} {'AUC: scan':>10} {'after':>6}")
    for label in sorted(arguments.bids.glob("derivatives/labels/**/*_label-lesion_mask.nii.gz")):
        entities = parse(label)
        folder = arguments.bids.joinpath(*entities.folders, "anat")
        scans = [path for sequence in SEQUENCES for path in folder.glob(f"*_{sequence}.nii.gz")]
        for path in sorted(scans):
            harmonized = arguments.out / output_path(parse(path))
            lesion = read_volume(label).data > 0.5
            scan = read_volume(path).data
            if not harmonized.exists() or lesion.shape != scan.shape:
                continue
            after = read_volume(harmonized).data
            contrast_before, auc_before = contrast_and_auc(scan, lesion)
            contrast_styled, _ = contrast_and_auc(styled(scan, after), lesion)
            contrast_after, auc_after = contrast_and_auc(after, lesion)
            contrasts = f"{contrast_before:>15.2f} {contrast_styled:>10.2f} {contrast_after:>6.2f}"
            name = parse(path).image_id
            print(f"{name:<24} {lesion.sum():>7} {contrasts} {auc_before:>10.3f} {auc_after:>6.3f}")


def styled(scan: np.ndarray, harmonized: np.ndarray) -> np.ndarray:
    """The scan after the increasing curve that comes closest to the harmonized image; zero where that is zero."""
    shown = harmonized > 0
    curve = IsotonicRegression(out_of_bounds="clip").fit(scan[shown], harmonized[shown])
    return np.where(shown, curve.predict(scan.ravel()).reshape(scan.shape), 0)


def contrast_and_auc(image: np.ndarray, lesion: np.ndarray) -> tuple[float, float]:
    """Contrast and area under the ROC curve of a lesion."""
    near = ndimage.binary_dilation(lesion, iterations=4) & ~ndimage.binary_dilation(lesion, iterations=1) & (image > 0)
    contrast = (image[lesion].mean() - image[near].mean()) / image[near].std()
    labels = np.r_[np.ones(lesion.sum()), np.zeros(near.sum())]
    return float(contrast), float(roc_auc_score(labels, np.r_[image[lesion], image[near]]))


if __name__ == "__main__":
    main()
