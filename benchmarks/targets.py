"""Which targets should training see: the teacher's, simulated ones, or both? Several seeds, on held-out travelers.

    mmh phantom bids --config configs/demo.yaml
    mmh manifest bids manifest.parquet --config configs/demo.yaml
    mmh prepare manifest.parquet prepared --config configs/demo.yaml
    python benchmarks/targets.py manifest.parquet prepared --truth bids/derivatives/truth

Every run trains the demo's network in this process for fewer steps than the demo does and harmonizes the travelers' scans with and
without detail projection. Measures are those of `mmh evaluate`; a cell is the mean over seeds and, after the sign, half the range.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from mmh_ray.config import Config, load_config
from mmh_ray.distributed.datasets import GroupMaker, UnifiedDomain, as_slab_batch
from mmh_ray.distributed.shards import PreparedStore
from mmh_ray.evaluation.metrics import gradient_correlation, psnr, scale_by_percentiles, ssim, truth_nrmse, w1
from mmh_ray.harmonizer import Harmonizer
from mmh_ray.imaging.volume import Volume, read_volume
from mmh_ray.models.bundle import Bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.learner import Learner

MEASURES = ("psnr", "ssim", "w1", "gradient_correlation", "truth_nrmse")
Scan = tuple[dict[str, Any], Volume, np.ndarray, np.ndarray]
"""Manifest row, scan, brain mask, noise-free truth."""


def trained(store: str, config: Config) -> Bundle:
    """The averaged weights after the last step, as they are."""
    torch.manual_seed(config.train.seed)
    domain = UnifiedDomain.of(PreparedStore(store), config)
    quantiles = domain.as_tensor(config.model.sequences)
    learner = Learner(GlobalHarmonizer(config.model, config.train, quantiles), config.train)
    threads = torch.get_num_threads()
    maker = GroupMaker(store, config, domain)
    torch.set_num_threads(threads)  # the maker takes one, as in its actor
    share = config.train.volumes_per_step
    for step in range(config.train.steps):
        learner.step(as_slab_batch(maker({"id": np.arange(step * share, (step + 1) * share)})))
    return Bundle(learner.average, config, quantiles, "", {})


def measured(scans: list[Scan], images: list[np.ndarray]) -> dict[str, float]:
    """Measures of one sequence, as `mmh evaluate` takes them."""
    scaled = [scale_by_percentiles(image, mask) for image, (_, _, mask, _) in zip(images, scans, strict=True)]
    pairs: dict[str, list[float]] = {"psnr": [], "ssim": [], "w1": []}
    for (one, a), (other, b) in itertools.combinations(zip(scans, scaled, strict=True), 2):
        if one[0]["subject"] == other[0]["subject"] and one[0]["site"] != other[0]["site"]:
            both = one[2] & other[2]
            pairs["psnr"].append(psnr(a, b, both))
            pairs["ssim"].append(ssim(a, b, both))
            pairs["w1"].append(w1(a[one[2]], b[other[2]]))
    found = {name: float(np.mean(values)) for name, values in pairs.items()}
    edges = [gradient_correlation(image, scan[1].data, scan[2]) for image, scan in zip(images, scans, strict=True)]
    truth = truth_nrmse(images, [scan[3] for scan in scans], [scan[2] for scan in scans]).cohort
    return found | {"gradient_correlation": float(np.mean(edges)), "truth_nrmse": truth}


def read(manifest: str, truth: str, travelers: int) -> list[Scan]:
    """Scans of the first travelers with mask and truth."""
    rows = [row for row in pq.read_table(manifest).to_pylist() if row["subject"].startswith("traveler")]
    subjects = sorted({row["subject"] for row in rows})[:travelers]
    scans = []
    for row in rows:
        if row["subject"] in subjects:
            stem = f"{truth}/sub-{row['subject']}/anat/sub-{row['subject']}_desc-noisefree_{row['sequence']}.nii.gz"
            mask = read_volume(row["mask_uri"]).data > 0.5
            scans.append((row, read_volume(row["uri"]), mask, read_volume(stem).data))
    return scans


def main() -> None:
    """Train every mixture with every seed and print a table per sequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("prepared")
    parser.add_argument("--truth", required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[0, 0.5, 1], help="train.simulated_share")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--travelers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    base = load_config(Path(__file__).parents[1] / "configs/demo.yaml", [f"train.steps={arguments.steps}"])
    scans = read(arguments.manifest, arguments.truth, arguments.travelers)
    rows = []
    for share, seed in itertools.product(arguments.shares, range(arguments.seeds)):
        config = replace(base, train=replace(base.train, simulated_share=share, seed=seed))
        bundle = trained(arguments.prepared, config)
        for detail in ("model", "project"):
            harmonizer = Harmonizer(bundle, replace(config.harmonize, detail=detail))
            for sequence in config.model.sequences:
                chosen = [scan for scan in scans if scan[0]["sequence"] == sequence]
                images = [harmonizer.run(volume, sequence, mask).volume.data for _, volume, mask, _ in chosen]
                facts = {"share": share, "seed": seed, "detail": detail, "sequence": sequence}
                rows.append(facts | measured(chosen, images))
    for sequence, detail in itertools.product(base.model.sequences, ("model", "project")):
        print(f"{sequence}, harmonize.detail={detail}: " + ", ".join(MEASURES))
        for share in arguments.shares:
            chosen = [r for r in rows if (r["sequence"], r["detail"], r["share"]) == (sequence, detail, share)]
            values = np.array([[row[name] for name in MEASURES] for row in chosen])
            cells = zip(values.mean(0), np.ptp(values, axis=0) / 2, strict=True)
            print(f"  share {share:<4g}" + "".join(f" {mean:9.4f} ±{half:.4f}" for mean, half in cells))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
