"""How near do scans of other sites come to a target site, with few and with many of its images?

    make demo
    python benchmarks/target_sites.py --model demo/runs/demo/bundle --out /tmp/target-sites

Makes a simulated archive whose first site has 40 subjects, trains targets on 3, 8 and 32 of its images (`mmh train-target`) with several
seeds, moves the travelers' scans of the other sites there, and scores them as `mmh evaluate-target` does. Ablations at 8 images: without
the style displacement, without the adapter (the curve alone), and a target from a single scan without training. A cell is the mean over
seeds and, after the sign, half the range.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mmh_ray.bids.entities import desc_of, output_path, parse
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config, load_config
from mmh_ray.distributed.evaluate_target import evaluate_target
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.distributed.prepare import prepare
from mmh_ray.distributed.train_target import train_targets
from mmh_ray.evaluation.target import OURS
from mmh_ray.harmonizer import Harmonizer
from mmh_ray.imaging.volume import Volume, read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.models.target_bundle import Target, load_target
from mmh_ray.reference_target import target_of_scan

SITE, SUBJECTS, OTHERS, TRAVELERS = "alder", 40, 5, 4
IMAGES, ABLATED = (3, 8, 32), 8
CURVE, PLAIN, SINGLE = "curve alone, 8 images", "without displacement, 8 images", "one scan, no training"
MEASURES = ("psnr", "ssim", "truth_nrmse", "w1", "gradient_correlation")


def make_store(out: Path, config: Config) -> tuple[str, str, str]:
    """Archive, manifest and prepared volumes; sites other than the target keep a few subjects."""
    bids, manifest, prepared = (str(out / name) for name in ("bids", "manifest.parquet", "prepared"))
    make_archive(bids, replace(config.phantom, subjects_per_site=SUBJECTS, travelers=TRAVELERS))
    for folder in Path(bids).glob("sub-*"):
        if not folder.name.startswith((f"sub-{SITE}", "sub-traveler")) and int(folder.name[-2:]) > OTHERS:
            shutil.rmtree(folder)
    build_manifest(bids, manifest, config)
    prepare(manifest, prepared, config)
    return bids, manifest, prepared


def train(prepared: str, model: str, out: Path, config: Config, seeds: int) -> dict[tuple[str, int], Target]:
    """Targets by name and seed."""
    found: dict[tuple[str, int], Target] = {}
    wanted = [(f"{images} images", {"images": images}) for images in IMAGES]
    for name, settings in [*wanted, (PLAIN, {"images": ABLATED, "displacement_weight": 0.0})]:
        for seed in range(seeds):
            storage = str(out / f"{name}-{seed}")
            target = replace(config.target, site=(SITE,), storage=storage, seed=seed, **settings)
            start = time.monotonic()
            (trained,) = train_targets(prepared, model, replace(config, target=target))
            print(f"{name}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
            found[name, seed] = load_target(trained.bundle)
    for seed in range(seeds):
        found[CURVE, seed] = replace(found[f"{ABLATED} images", seed], weights={})
    return found


def from_scan(harmonizer: Harmonizer, rows: list[dict], sequences: tuple[str, ...], number: int) -> Target:
    """A target from one subject's scans of the target site."""
    looks = []
    for sequence in sequences:
        row = [row for row in rows if (row["site"], row["sequence"], row["split"]) == (SITE, sequence, "train")][number]
        mask = read_volume(row["mask_uri"]).data > 0.5
        looks.append(target_of_scan(harmonizer, read_volume(row["uri"]), sequence, SITE, row["image_id"], mask))
    return replace(looks[0], styles={name: style for look in looks for name, style in look.styles.items()})


def move(rows: list[dict], harmonizer: Harmonizer, unified: Path, targets: dict[Path, Target]) -> None:
    """Write the travelers' scans in the unified domain and as every target, all from one global pass each."""
    for target in targets.values():
        target.attach(harmonizer.bundle)
    for row in rows:
        if not row["subject"].startswith("traveler") or row["site"] == SITE:
            continue
        entities, mask = parse(row["uri"]), read_volume(row["mask_uri"]).data > 0.5
        ready = harmonizer.ready(read_volume(row["uri"]), row["sequence"], mask)
        places = {unified: output_path(entities)} | dict.fromkeys(targets, output_path(entities, desc=desc_of(SITE)))
        images = harmonizer.infer(ready, [None, *targets.values()])
        for (folder, name), image in zip(places.items(), images, strict=True):
            volume: Volume = harmonizer.finish(ready, image).volume
            write_volume(volume, folder / name)


def main() -> None:
    """Make, train, move, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="bundle folder, made by `make demo`")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    torch.set_num_threads(1)
    tracking = f"tracking.uri=sqlite:///{arguments.out.absolute()}/mlflow.db"
    config = load_config(Path(__file__).parents[1] / "configs/demo.yaml", [tracking])
    bids, manifest, prepared = make_store(arguments.out, config)
    trained = train(prepared, arguments.model, arguments.out, config, arguments.seeds)
    rows = [row for row in read_manifest(manifest).to_pylist() if row["status"] == "ok"]
    harmonizer = Harmonizer(load_bundle(arguments.model))
    for number in range(arguments.seeds):
        trained[SINGLE, number] = from_scan(harmonizer, rows, config.model.sequences, number)
    folders = {arguments.out / "moved" / f"{name}-{seed}": target for (name, seed), target in trained.items()}
    unified = arguments.out / "moved" / "unified"
    move(rows, harmonizer, unified, folders)
    scores = defaultdict(list)
    for (name, _), folder in zip(trained, folders, strict=True):
        found = evaluate_target(manifest, SITE, str(unified), str(folder), config, f"{bids}/derivatives/truth")
        for sequence, methods in found.items():
            for method, row in methods.items():
                key = f"ours, {name}" if method == OURS else method
                scores[sequence, key].append([row[measure] for measure in MEASURES])
    print("| | |", *(f"{name} |" for name in MEASURES))
    for (sequence, name), values in sorted(scores.items()):
        table = np.array(values)
        cells = zip(table.mean(0), (table.max(0) - table.min(0)) / 2, strict=True)
        print(f"| {sequence} | {name} |", *(f"{mean:.3f} ± {spread:.3f} |" for mean, spread in cells))
    kept = [[*key, values] for key, values in scores.items()]
    (arguments.out / "scores.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
