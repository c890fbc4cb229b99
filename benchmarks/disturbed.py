"""Harmonizes real scans that were changed: tilted, moved, mirrored, rescaled, stripped, noisy, cut, thick-sliced.

    mmh manifest BIDS manifest.parquet
    python benchmarks/disturbed.py manifest.parquet [--model mmh-base]

One scan of each site and sequence is harmonized unchanged and with each change. Changes that preserve the brain and its
contrast must not affect the result: the table gives the overlap of the two brain masks (Dice), and the root mean square
difference of the two harmonized images inside both, in unit intensity, each as the median and the worst over scans. For
every change it gives the number of scans that were taken without a flag, flagged and refused.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mmh_ray.bids.manifest import read_manifest
from mmh_ray.errors import MMHError
from mmh_ray.harmonization.harmonizer import HarmonizedScan
from mmh_ray.harmonization.one_scan import load
from mmh_ray.imaging.volume import Volume, read_volume

Change = Callable[[Volume, np.ndarray, np.random.Generator], Volume]
"""Changes a scan, given its brain."""


def moved(matrix: np.ndarray) -> Change:
    """Move the scan in the scanner by changing the header alone; rotations are about the middle of the grid."""

    def change(volume: Volume, _brain: np.ndarray, _rng: np.random.Generator) -> Volume:
        middle = volume.affine @ np.append((np.array(volume.data.shape) - 1) / 2, 1)
        centre = np.eye(4)
        centre[:3, 3] = middle[:3]
        return Volume(volume.data, centre @ matrix @ np.linalg.inv(centre) @ volume.affine)

    return change


def turned(axis: str, degrees: float) -> Change:
    """Rotate the head."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return moved(matrix)


def shifted(*millimetres: float) -> Change:
    """Shift the head away from the scanner's centre."""
    matrix = np.eye(4)
    matrix[:3, 3] = millimetres
    return moved(matrix)


def valued(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Change:
    """Replace intensities by a function of the brain and of the intensities, as a multiple of their 99th percentile."""

    def change(volume: Volume, brain: np.ndarray, _rng: np.random.Generator) -> Volume:
        return volume.like(function(volume.data / np.percentile(volume.data[brain], 99), brain).astype(np.float32))

    return change


def scores(data: np.ndarray, over: np.ndarray) -> np.ndarray:
    """Standard scores with respect to a region."""
    return (data - data[over].mean()) / data[over].std()


def mirrored(volume: Volume, _brain: np.ndarray, _rng: np.random.Generator) -> Volume:
    """Reverse the first axis of the file, and change its header accordingly."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = volume.data.shape[0] - 1
    return Volume(np.ascontiguousarray(volume.data[::-1]), volume.affine @ flip)


def noisy(volume: Volume, brain: np.ndarray, rng: np.random.Generator) -> Volume:
    """Add Rician noise of an eighth of the brightest tissue."""
    level = np.percentile(volume.data[brain], 99) / 8
    real, imaginary = rng.normal(0, level, (2, *volume.data.shape))
    return volume.like(np.hypot(volume.data + real, imaginary).astype(np.float32))


def biased(volume: Volume, _brain: np.ndarray, _rng: np.random.Generator) -> Volume:
    """Multiply by a smooth receive field with values from about a fifth to five."""
    steps = np.meshgrid(*(np.linspace(-1, 1, n) for n in volume.data.shape), indexing="ij")
    return volume.like((volume.data * np.exp(0.4 * steps[0] - 0.5 * steps[1] + 0.7 * steps[2])).astype(np.float32))


def thick(volume: Volume, _brain: np.ndarray, _rng: np.random.Generator) -> Volume:
    """Average slices along the last axis of the file to a thickness of 6 mm or more."""
    count = int(np.ceil(6 / volume.spacing[2]))
    whole = volume.data.shape[2] // count
    data = volume.data[..., : whole * count].reshape(*volume.data.shape[:2], whole, count).mean(-1)
    affine = volume.affine @ np.diag([1.0, 1, count, 1])
    affine[:3, 3] += volume.affine[:3, 2] * (count - 1) / 2
    return Volume(data.astype(np.float32), affine)


def cut(volume: Volume, brain: np.ndarray, _rng: np.random.Generator) -> Volume:
    """Remove the upper third of the brain."""
    up = np.abs(volume.affine[2, :3]).argmax()
    rows = np.flatnonzero(brain.any(axis=tuple(axis for axis in range(3) if axis != up)))
    place = rows[len(rows) // 3 if volume.affine[2, up] < 0 else len(rows) * 2 // 3]
    if volume.affine[2, up] > 0:
        return Volume(np.take(volume.data, range(place), up), volume.affine)
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, up] * place
    return Volume(np.take(volume.data, range(place, volume.data.shape[up]), up), affine)


SAME: dict[str, Change] = {
    "rolled by 25 degrees": turned("y", 25),
    "nodding by 20 degrees": turned("x", 20),
    "turned by 30 degrees": turned("z", 30),
    "elsewhere": shifted(120, -90, 200),
    "mirrored in the file": mirrored,
    "30,000 units": valued(lambda data, _: np.round(data * 3e4)),
    "1e-4 units": valued(lambda data, _: data * 1e-4),
    "300 of 800 below zero": valued(lambda data, _: data * 800 - 300),
    "standard scores": valued(lambda data, _: scores(data, np.ones(data.shape, bool))),
    "stripped": valued(lambda data, brain: np.where(brain, data, 0)),
    "stripped, standard scores": valued(lambda data, brain: np.where(brain, scores(data, brain), 0)),
}
DAMAGED: dict[str, Change] = {"noisy": noisy, "biased": biased, "thick slices": thick, "cut": cut}


def one_of_each(manifest: str) -> Iterator[dict[str, str]]:
    """The middle one of the usable scans of every site and sequence."""
    groups = defaultdict(list)
    for row in read_manifest(manifest).to_pylist():
        if row["status"] == "ok":
            groups[row["site"], row["sequence"]].append(row)
    for rows in groups.values():
        yield rows[len(rows) // 2]


def main() -> None:
    """Harmonize, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="the archive's manifest, made by `mmh manifest`")
    parser.add_argument("--model", default="mmh-base")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model)
    harmonizer = model.harmonizer
    agreement = defaultdict(list)
    outcomes = defaultdict(list)
    for row in one_of_each(arguments.manifest):
        if row["sequence"] not in model.sequences:
            continue
        scan, rng = read_volume(row["uri"]), np.random.default_rng(0)
        try:
            plain = harmonizer.run(scan, row["sequence"])
        except MMHError as error:
            print(f"{row['image_id']} is left out: {error}")
            continue
        for name, change in (SAME | DAMAGED).items():
            try:
                changed = harmonizer.run(change(scan, plain.prepared.brain, rng), row["sequence"])
            except MMHError as error:
                outcomes[name].append(f"refused ({row['image_id']}: {error})")
                continue
            flags = ", ".join(changed.flags)
            outcomes[name].append(f"flagged ({row['image_id']}: {flags})" if flags else "taken")
            if name in SAME:
                agreement[name].append(compare(plain, changed, mirror=change is mirrored))
    for name, of_scans in outcomes.items():
        counts = [f"{sum(o.startswith(kind) for o in of_scans)} {kind}" for kind in ("taken", "flagged", "refused")]
        print(f"{name:<28} {', '.join(counts)}", end="")
        if agreement[name]:
            dice, difference = np.array(agreement[name]).T
            print(f"; Dice {np.median(dice):.3f} ({dice.min():.3f})", end="")
            print(f", difference {np.median(difference):.3f} ({difference.max():.3f})", end="")
        print()
    for name, of_scans in outcomes.items():
        for outcome in of_scans:
            if outcome != "taken":
                print(f"{name}: {outcome}")


def compare(plain: HarmonizedScan, changed: HarmonizedScan, mirror: bool) -> tuple[float, float]:
    """Dice of the brains, and the root mean square difference inside both."""
    brain = changed.prepared.brain
    data = changed.harmonized.data
    if mirror:
        brain = brain[::-1]
        data = data[::-1]
    both = brain & plain.prepared.brain
    dice = 2 * both.sum() / (brain.sum() + plain.prepared.brain.sum())
    return float(dice), float(np.sqrt(np.mean((data - plain.harmonized.data)[both] ** 2)))


if __name__ == "__main__":
    main()
