"""Measures how close scans of other sites come to a target site, by its number of images, and the effect of each part.

    make demo
    python benchmarks/target_sites.py --model demo/runs/demo/bundle --out /tmp/target-sites
    python benchmarks/target_sites.py --model demo/runs/demo/bundle --out /tmp/target-sites --only "8 images" --seeds 1
    python benchmarks/target_sites.py --model demo/runs/demo/bundle --out /tmp/target-sites --only parallel

Makes a simulated archive whose first site has 40 subjects, and trains targets on 3, 8 and 32 of its images with several
seeds, which draw different images. Moves the travelers' scans of the other sites there, and scores them as `mmh
evaluate --target` does. Ablations at 8 images:

- without the style displacement, or without reconstruction;
- without the adapter (the curve alone);
- all weights of a copy are trained instead of adapters, at a tenth of the learning rate: low-rank updates, with one
  factor that starts at zero, need about ten times the rate of whole weights;
- BiomedCLIP's image tower with random weights as style encoder (fewer slices and steps, because it is slow), and the
  embedded one with the same slices and steps;
- a target from a single scan, without training.

`parallel` measures the time of `mmh train-target` for one site and for two, all sequences, 8 images each, on two CPUs.

Every score is appended to OUT/scores.jsonl at once and not computed again: the same command continues an interrupted
run, and a run in parts gives the same table. A cell is the mean over seeds and, after the sign, half the range.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from style import untrained_biomedclip
from torch import Tensor

from mmh_ray.bids.entities import desc_of, output_path, parse
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config, load_config
from mmh_ray.distributed import train_target
from mmh_ray.distributed.evaluate import evaluate
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.distributed.prepare import prepare
from mmh_ray.evaluation.metrics.registry import OURS
from mmh_ray.evaluation.statistics.summary import by_sequence
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.reference_target import target_of_scan
from mmh_ray.imaging.volume import read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.models.sampling import estimate_planes
from mmh_ray.models.target.bundle import Target, load_target
from mmh_ray.models.target.fine_tuner import TargetFineTuner
from mmh_ray.shards import PreparedStore

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SITE = "alder"
OTHER = "birch"
SUBJECTS = 40
"""Subjects of the target site."""
OTHERS = 12
"""Subjects of every other site."""
TRAVELERS = 4
FULL = "full fine-tuning"
BIOMEDCLIP = "biomedclip"
EMBEDDED = "embedded, as biomedclip"
CURVE = "curve alone"
SINGLE = "one scan"
PARALLEL = "parallel"
TRAINED: dict[str, dict[str, Any]] = {
    **{f"{images} images": {"images": images} for images in (3, 8, 32)},
    "without displacement": {"images": 8, "displacement_weight": 0.0},
    "without reconstruction": {"images": 8, "reconstruction_weight": 0.0},
    FULL: {"images": 8, "learning_rate": 2e-4},
    **{name: {"images": 8, "slabs_per_plane": 1, "steps": 30} for name in (BIOMEDCLIP, EMBEDDED)},
}
"""Settings of `target` by name; the curve alone is that of 8 images."""
SLICES = 2
"""Slices of the style encoder, if it is BiomedCLIP's or compared with it."""
NAMES = (*TRAINED, CURVE, SINGLE, PARALLEL)
METRICS = (
    "psnr",
    "ssim",
    "truth_nrmse",
    "truth_nrmse_direct",
    "w1",
    "w1_of_raw",
    "gradient_correlation",
    "dice_truth",
    "style_distance",
    "site_probe_style",
    "site_probe_cnn",
)
SHOWN = (*METRICS, "seconds")


@dataclass(frozen=True)
class Bench:
    """Settings and places of the benchmark."""

    out: Path
    model: str
    config: Config

    @property
    def bids(self) -> Path:
        """The archive."""
        return self.out / "bids"

    @property
    def manifest(self) -> str:
        """The manifest of the archive."""
        return str(self.out / "manifest.parquet")

    @property
    def prepared(self) -> str:
        """The store of prepared volumes."""
        return str(self.out / "prepared")

    @property
    def unified(self) -> Path:
        """The travelers' scans in the unified domain."""
        return self.out / "moved" / "unified"

    def rows(self) -> list[dict[str, Any]]:
        """The manifest's usable rows."""
        return [row for row in read_manifest(self.manifest).to_pylist() if row["status"] == "ok"]

    def make(self) -> None:
        """Make archive, manifest and prepared volumes, once; only some subjects of the other sites are kept."""
        if (self.out / "ready").exists():
            return
        make_archive(str(self.bids), replace(self.config.phantom, subjects_per_site=SUBJECTS, travelers=TRAVELERS))
        for folder in self.bids.glob("sub-*"):
            if not folder.name.startswith((f"sub-{SITE}", "sub-traveler")) and int(folder.name[-2:]) > OTHERS:
                shutil.rmtree(folder)
        build_manifest(str(self.bids), self.manifest, self.config)
        prepare(self.manifest, self.prepared, self.config)
        (self.out / "ready").touch()

    def prepared_of(self, sequence: str) -> str:
        """A store of prepared volumes of one sequence."""
        manifest = self.out / f"{sequence}.parquet"
        store = self.out / f"prepared-{sequence}"
        table = read_manifest(self.manifest)
        pq.write_table(table.filter(pc.field("sequence") == sequence), manifest)
        prepare(str(manifest), str(store), self.config)
        return str(store)


class FullFineTuner(TargetFineTuner):
    """The ablation without adapters: trains a copy of the whole denoiser."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.frozen = self.model.denoiser
        self.copy = copy.deepcopy(self.frozen)
        for name, value in self.copy.named_parameters():
            value.requires_grad_("lora_" not in name)
        self.frozen.requires_grad_(False)

    def wear(self, name: str | None) -> None:
        """Use the copy in place of an adapter; the adapters stay off."""
        self.model.denoiser = self.frozen if name is None else self.copy

    def state(self) -> dict[str, Tensor]:
        """Weights of the copy under the names of a denoiser without adapters."""
        state = {key.replace(".base_layer", ""): value for key, value in self.copy.state_dict().items()}
        return {key: value.clone() for key, value in state.items() if "lora_" not in key}


class FullHarmonizer(Harmonizer):
    """Moves scans with trained copies of the denoiser, one per sequence."""

    states: dict[str, dict[str, Tensor]]

    def _moved(self, unified: np.ndarray, before: Any, ready: Any, target: Target) -> np.ndarray:
        label = self.bundle.sequence_index(ready.sequence)
        mask = ready.prepared.mask
        model = copy.deepcopy(self.bundle.model)
        plain = estimate_planes(model, unified, mask, label, self.settings)
        model.denoiser.load_state_dict(self.states[ready.sequence])
        tuned = estimate_planes(model, unified, mask, label, self.settings)
        planes = target.styles[ready.sequence].moved(unified + tuned - plain, mask)
        return np.clip(planes.mean(0), 0, None) * mask


def train(bench: Bench, name: str, seed: int, settings: dict[str, Any], style: Any) -> Target:
    """A target as `mmh train-target` makes it."""
    storage = str(bench.out / "runs" / f"{name}-{seed}")
    target = replace(bench.config.target, site=(SITE,), storage=storage, seed=seed, **settings)
    config = replace(bench.config, target=target, style=style)
    (trained,) = train_target.train_targets(bench.prepared, bench.model, config)
    return load_target(trained.bundle)


def train_fully(bench: Bench, seed: int, settings: dict[str, Any]) -> tuple[Target, Harmonizer]:
    """Train all weights of a copy in this process."""
    bundle = load_bundle(bench.model, DEVICE)
    store = PreparedStore(bench.prepared)
    config = replace(bench.config, target=replace(bench.config.target, site=(SITE,), seed=seed, **settings))
    tasks = train_target.plan_site(store, SITE, bundle, config)
    harmonizer = FullHarmonizer(bundle, config.harmonize)
    with mock.patch.object(train_target, "TargetFineTuner", FullFineTuner):
        outcomes = {task.sequence: train_target.train_adapter(task, store.uri, bundle, config) for task in tasks}
    harmonizer.states = {sequence: outcome.tuned.state for sequence, outcome in outcomes.items()}
    styles = {sequence: outcome.style for sequence, outcome in outcomes.items()}
    return Target(SITE, styles, "0" * 64, "", {}, {}, 0), harmonizer


def from_scan(bench: Bench, harmonizer: Harmonizer, number: int) -> Target:
    """A target from one subject's scans of the target site."""
    targets = []
    for sequence in bench.config.model.sequences:
        group = (SITE, sequence, "train")
        row = [row for row in bench.rows() if (row["site"], row["sequence"], row["split"]) == group][number]
        mask = read_volume(row["mask_uri"]).data > 0.5
        targets.append(target_of_scan(harmonizer, read_volume(row["uri"]), sequence, SITE, row["image_id"], mask))
    return replace(targets[0], styles={name: style for target in targets for name, style in target.styles.items()})


def move(bench: Bench, harmonizer: Harmonizer, target: Target | None, folder: Path) -> None:
    """Write the travelers' scans of the other sites in the target's style, or for None in the unified domain."""
    if target is not None:
        target.attach(harmonizer.bundle)
    for row in bench.rows():
        if row["subject"].startswith("traveler") and row["site"] != SITE:
            mask = read_volume(row["mask_uri"]).data > 0.5
            ready = harmonizer.ready(read_volume(row["uri"]), row["sequence"], mask)
            (image,) = harmonizer.infer(ready, [target])
            name = output_path(parse(row["uri"]), desc=desc_of(target and SITE))
            write_volume(harmonizer.finish(ready, image).volume, folder / name)


def make_target(bench: Bench, name: str, seed: int) -> tuple[Target, Harmonizer, float]:
    """A target, the harmonizer that moves scans to it, and the seconds of making it."""
    harmonizer = Harmonizer(load_bundle(bench.model, DEVICE), bench.config.harmonize)
    start = time.monotonic()
    if name == SINGLE:
        target = from_scan(bench, harmonizer, seed)
    elif name == CURVE:
        target = replace(load_target(bench.out / "runs" / f"8 images-{seed}" / "targets" / SITE), weights={})
    elif name == FULL:
        target, harmonizer = train_fully(bench, seed, TRAINED[name])
    elif name == BIOMEDCLIP:
        with tempfile.TemporaryDirectory() as folder:
            style = replace(bench.config.style, backbone=str(untrained_biomedclip(Path(folder))), slices=SLICES)
            target = train(bench, name, seed, TRAINED[name], style)
    else:
        style = replace(bench.config.style, slices=SLICES) if name == EMBEDDED else bench.config.style
        target = train(bench, name, seed, TRAINED[name], style)
    return target, harmonizer, time.monotonic() - start


def score(bench: Bench, name: str, seed: int) -> None:
    """Train, move and score; the scores are written at once."""
    target, harmonizer, seconds = make_target(bench, name, seed)
    folder = bench.out / "moved" / f"{name}-{seed}"
    move(bench, harmonizer, target, folder)
    keep(bench, name, seed, {"ours": str(folder)}, seconds)


def keep(bench: Bench, name: str, seed: int, archives: dict[str, str], seconds: float) -> None:
    """Append a line of scores: of `ours` alone if it is among the archives, otherwise of all methods."""
    truth = str(bench.bids / "derivatives" / "truth")
    with tempfile.TemporaryDirectory() as out:
        evaluation = evaluate({"raw": bench.manifest, **archives}, out, bench.config, truth, target=SITE)
    scores = {}
    for sequence, methods in by_sequence(evaluation).items():
        scores[sequence] = {OURS: methods[OURS]} if OURS in methods else methods
    append(bench, {"name": name, "seed": seed, "seconds": seconds, "scores": scores})


def append(bench: Bench, line: dict[str, Any]) -> None:
    """Append a line to OUT/scores.jsonl."""
    with (bench.out / "scores.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def in_parallel(bench: Bench) -> None:
    """Time `mmh train-target` for one site and for two in parallel, on two CPUs.

    Both for all sequences and for one sequence, with which a site is a single task and leaves a CPU to the other.
    """
    import ray

    single = bench.prepared_of(bench.config.model.sequences[0])
    with two_cpus(ray):
        timed(bench, bench.prepared, (SITE,), steps=1)  # starts workers
        for name, store in (PARALLEL, bench.prepared), (f"{PARALLEL}, one sequence", single):
            alone = timed(bench, store, (SITE,))
            both = timed(bench, store, (SITE, OTHER))
            ratio = both / alone
            append(bench, {"name": name, "seed": 0, "one_s": alone, "two_s": both, "ratio": ratio, "scores": {}})
            print(f"{name}: one site {alone:.0f} s, two sites {both:.0f} s, ratio {ratio:.2f}")


@contextmanager
def two_cpus(ray: Any) -> Iterator[None]:
    """A cluster of two CPUs during a block."""
    ray.shutdown()
    ray.init(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


def timed(bench: Bench, store: str, sites: tuple[str, ...], **settings: Any) -> float:
    """Seconds until all adapters of the sites are registered."""
    storage = str(bench.out / "runs" / PARALLEL)
    start = time.monotonic()
    target = replace(bench.config.target, site=sites, images=8, storage=storage, **settings)
    train_target.train_targets(store, bench.model, replace(bench.config, target=target))
    return time.monotonic() - start


def table(lines: list[dict[str, Any]]) -> None:
    """Print means over seeds."""
    cells: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    scored = [line for line in lines if line["scores"]]
    for line in scored:
        for sequence, methods in line["scores"].items():
            for method, row in methods.items():
                values = row | {"seconds": line["seconds"] if method == OURS else None}
                key = f"ours, {line['name']}" if method == OURS else method
                cells[sequence, key].append([np.nan if values.get(m) is None else values[m] for m in SHOWN])
    print("| | |", *(f"{name} |" for name in SHOWN))
    print("|---" * (len(SHOWN) + 2) + "|")
    for (sequence, name), rows in sorted(cells.items()):
        values = np.array(rows)
        spread = (values.max(0) - values.min(0)) / 2
        print(
            f"| {sequence} | {name} |", *(f"{m:.3f} ± {s:.3f} |" for m, s in zip(values.mean(0), spread, strict=True))
        )


def done(out: Path) -> list[dict[str, Any]]:
    """Scores of earlier runs."""
    path = out / "scores.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Make the archive, train, move, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="bundle folder, made by `make demo`")
    parser.add_argument("--out", type=Path, required=True, help="new folder, or that of an earlier run to continue")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    out = arguments.out.absolute()
    settings = [f"tracking.uri=sqlite:///{out}/mlflow.db", "evaluate.cnn=some", *arguments.overrides]
    bench = Bench(out, arguments.model, load_config(Path(__file__).parents[1] / "configs/demo.yaml", settings))
    bench.make()
    known = {(line["name"], line["seed"]) for line in done(out)}
    if ("baselines", 0) not in known:
        move(bench, Harmonizer(load_bundle(bench.model, DEVICE)), None, bench.unified)
        keep(bench, "baselines", 0, {"global": str(bench.unified)}, 0)
    for name in (name for name in NAMES if name in arguments.only):
        for seed in range(1 if name == PARALLEL else arguments.seeds):
            if (name, seed) in known:
                continue
            if name == PARALLEL:
                in_parallel(bench)
            else:
                score(bench, name, seed)
    table(done(out))


if __name__ == "__main__":
    main()
