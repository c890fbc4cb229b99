"""Measures by what a probe of style vectors still recognizes the site: by contrast, or by the scanner's sharpness.

    make demo
    python benchmarks/site_marks.py demo

Measures the travelers' scans of three sites that were moved to the fourth, and bounds that use the truth, which no
method may:

- `best curve of each site`: ours after the increasing map per site that comes closest to the noise-free truth at the
  target (medians of the truth in 256 bins of intensity, all travelers);
- `source's sharpness`: no scan, but the noise-free image of the source's scanner after such a map. Its contrast is as
  right as an increasing map can make it, without bias field or traces of a method, so only sharpness differs;
- `+ noise`: with noise of the same level in all images;
- `target's sharpness + noise`: the noise-free truth with that noise. No difference is left, and the probe guesses.

A cell is the balanced accuracy of the probe of `mmh evaluate --target`: mean and half the range over demos and three
ways to divide the subjects into folds; chance is a third.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from mmh_ray.bids.entities import desc_of, output_path, parse
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import StyleConfig
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.probes.site import site_probe
from mmh_ray.imaging.intensity import noise_level
from mmh_ray.imaging.volume import read_volume
from mmh_ray.models.style.vectors import StyleVectors

BINS = 256
FOLDINGS = 3
Row = dict[str, Any]


def noise_free(demo: Path, row: Row) -> np.ndarray:
    """The scan of a row without noise and bias field."""
    parts = f"sub-{row['subject']}", f"ses-{row['session']}"
    name = f"{'_'.join(parts)}_desc-noisefree_{row['sequence']}.nii.gz"
    return read_volume(Path(demo, "bids/derivatives/truth", *parts, "anat", name)).data


def nearest(images: list[np.ndarray], truths: list[np.ndarray], masks: list[np.ndarray]) -> list[np.ndarray]:
    """Images, scaled by percentiles, after the common increasing map that comes closest to their truths."""
    scaled = [scale_by_percentiles(image, mask) for image, mask in zip(images, masks, strict=True)]
    source = np.concatenate([image[mask] for image, mask in zip(scaled, masks, strict=True)])
    target = np.concatenate([image[mask] for image, mask in zip(truths, masks, strict=True)])
    bins = np.array_split(np.argsort(source), BINS)
    knots = np.array([np.median(source[part]) for part in bins])
    heights = np.array([np.median(target[part]) for part in bins])
    heights = IsotonicRegression().fit_transform(knots, heights)
    return [np.interp(image, knots, heights) * mask for image, mask in zip(scaled, masks, strict=True)]


def arms(demo: Path, target: str, rows: list[Row], answers: dict[str, Row]) -> dict[str, list[np.ndarray]]:
    """Images by name, in the order of the rows."""
    masks = [read_volume(row["mask_uri"]).data > 0.5 for row in rows]
    outputs = {"global": ("harmonized", None), "ours": ("target", target)}
    images_of = {"raw": [read_volume(row["uri"]).data for row in rows]}
    for name, (folder, site) in outputs.items():
        places = [demo / folder / output_path(parse(row["uri"]), desc=desc_of(site)) for row in rows]
        images_of[name] = [read_volume(place).data for place in places]
    truths = [noise_free(demo, answers[row["subject"]]) for row in rows]
    truths = [scale_by_percentiles(image, mask) for image, mask in zip(truths, masks, strict=True)]
    sources = [noise_free(demo, row) for row in rows]
    by_site: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_site[row["site"]].append(place)

    def per_site(images: list[np.ndarray]) -> list[np.ndarray]:
        moved = list(images)
        for places in by_site.values():
            of_site = nearest(*([values[place] for place in places] for values in (images, truths, masks)))
            for place, image in zip(places, of_site, strict=True):
                moved[place] = image
        return moved

    levels = []
    for image, mask in zip(images_of["ours"], masks, strict=True):
        levels.append(noise_level(scale_by_percentiles(image, mask), mask))
    level = np.mean(levels)
    rng = np.random.default_rng(0)
    sharp = per_site(sources)
    images_of["ours, best curve of each site"] = per_site(images_of["ours"])
    images_of["source's sharpness"] = sharp
    images_of["source's sharpness + noise"] = [image + rng.normal(0, level, image.shape) for image in sharp]
    images_of["target's sharpness + noise"] = [image + rng.normal(0, level, image.shape) for image in truths]
    return images_of


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="+", help="folders that `mmh demo` made")
    parser.add_argument("--target", default="alder")
    arguments = parser.parse_args()
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for demo in arguments.demo:
        table = read_manifest(str(demo / "manifest.parquet")).to_pylist()
        table = [row for row in table if row["status"] == "ok" and row["subject"].startswith("traveler")]
        for sequence in sorted({row["sequence"] for row in table}):
            scans = [row for row in table if row["sequence"] == sequence]
            answers = {row["subject"]: row for row in scans if row["site"] == arguments.target}
            rows = [row for row in scans if row["site"] != arguments.target]
            labels = [row["site"] for row in rows], [row["subject"] for row in rows]
            describe = StyleVectors(StyleConfig())
            places = [(read_volume(row["mask_uri"]).data > 0.5, read_volume(row["uri"]).affine) for row in rows]
            for name, images in arms(demo, arguments.target, rows, answers).items():
                with_places = zip(images, places, strict=True)
                styles = np.array([describe(image.astype(np.float32), *place) for image, place in with_places])
                cells[name][sequence] += [
                    site_probe(styles, *labels, seed).balanced_accuracy for seed in range(FOLDINGS)
                ]
    for name, by_sequence in cells.items():
        values = (f"{seq} {np.mean(v):.2f} ± {np.ptp(v) / 2:.2f}" for seq, v in by_sequence.items())
        print(f"{name:32s}", *values)


if __name__ == "__main__":
    main()
