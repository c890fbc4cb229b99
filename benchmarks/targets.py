"""Compares training on the teacher's targets, on simulated targets and on both, on held-out travelers.

    mmh phantom bids --config configs/demo.yaml
    mmh manifest bids manifest.parquet --config configs/demo.yaml
    mmh prepare manifest.parquet prepared --config configs/demo.yaml
    python benchmarks/targets.py manifest.parquet prepared --truth bids/derivatives/truth

Every run trains the demo's network in this process, for fewer steps than the demo, and harmonizes the travelers' scans
with and without detail projection. The metrics are those of `mmh evaluate`; a cell is the mean over seeds and, after
the sign, half the range.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from travelers import MEASURES, measure, read

from mmh_ray.config import Config, load_config
from mmh_ray.distributed.datasets import GroupMaker
from mmh_ray.distributed.domains import UnifiedDomain
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.models.bundle import Bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.trainer import Trainer
from mmh_ray.shards import PreparedStore


def trained(store: str, config: Config) -> Bundle:
    """A bundle with the averaged weights after the last step."""
    torch.manual_seed(config.train.seed)
    domain = UnifiedDomain.of(PreparedStore(store), config)
    quantiles = domain.as_tensor(config.model.sequences)
    trainer = Trainer(GlobalHarmonizer(config.model, config.train, quantiles), config.train)
    threads = torch.get_num_threads()
    maker = GroupMaker(store, config, domain)
    torch.set_num_threads(threads)  # the group maker may have set one thread
    share = config.train.volumes_per_step
    for step in range(config.train.steps):
        trainer.step(SlabBatch.of_groups(maker({"id": np.arange(step * share, (step + 1) * share)})))
    return Bundle(trainer.average, config, quantiles, "", {})


def main() -> None:
    """Train with every mixture and seed, and print a table per sequence."""
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
                rows.append(facts | measure(chosen, images))
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
