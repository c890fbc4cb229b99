"""Are the lesions of real scans still there?

    python benchmarks/real_lesions.py BIDS OUT

For every lesion mask of BIDS/derivatives/labels and every harmonized image of the same session in OUT (made by `mmh harmonize`): the
contrast of the lesion with what lies two to four voxels around it, in standard deviations of the brain around it, and the
area under the ROC curve of telling lesion from surroundings by intensity (1 or 0: every voxel; .5: not at all), which no increasing
intensity curve changes. Each for the scan and for the harmonized image; the contrast also for the scan under the increasing curve that
comes nearest to the harmonized image: a new style changes contrasts by itself, and what differs from that was kept or lost.
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
    print(
        f"{'image':<24} {'voxels':>7} {'contrast: scan':>15} {'its curve':>10} {'after':>6} {'AUC: scan':>10} {'after':>6}"
    )
    for label in sorted(arguments.bids.glob("derivatives/labels/**/*_label-lesion_mask.nii.gz")):
        entities = parse(label)
        folder = arguments.bids.joinpath(*entities.folders, "anat")
        scans = [path for sequence in SEQUENCES for path in folder.glob(f"*_{sequence}.nii.gz")]
        for path in sorted(scans):
            harmonized, lesion = arguments.out / output_path(parse(path)), read_volume(label).data > 0.5
            if harmonized.exists() and lesion.shape == (scan := read_volume(path).data).shape:
                after = read_volume(harmonized).data
                (before, auc), (own, _), (kept, auc_after) = (
                    found(image, lesion) for image in (scan, styled(scan, after), after)
                )
                print(
                    f"{parse(path).image_id:<24} {lesion.sum():>7} {before:>15.2f} {own:>10.2f} {kept:>6.2f} {auc:>10.3f} {auc_after:>6.3f}"
                )


def styled(scan: np.ndarray, harmonized: np.ndarray) -> np.ndarray:
    """The scan under the increasing curve that comes nearest to the harmonized image, zero where that is."""
    shown = harmonized > 0
    curve = IsotonicRegression(out_of_bounds="clip").fit(scan[shown], harmonized[shown])
    return np.where(shown, curve.predict(scan.ravel()).reshape(scan.shape), 0)


def found(image: np.ndarray, lesion: np.ndarray) -> tuple[float, float]:
    """Contrast and area under the curve of a lesion."""
    near = ndimage.binary_dilation(lesion, iterations=4) & ~ndimage.binary_dilation(lesion, iterations=1) & (image > 0)
    contrast = (image[lesion].mean() - image[near].mean()) / image[near].std()
    labels = np.r_[np.ones(lesion.sum()), np.zeros(near.sum())]
    return float(contrast), float(roc_auc_score(labels, np.r_[image[lesion], image[near]]))


if __name__ == "__main__":
    main()
