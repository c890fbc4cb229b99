"""Measures the peak memory of the long stages for a small and a ten times larger cohort: it must not grow.

    python benchmarks/memory.py                     # prepare and the training stream, 20 and 200 volumes
    python benchmarks/memory.py --volumes 20 50 --json memory.json
    python benchmarks/memory.py --scan 192 256      # one scan in the worker of `mmh harmonize`, by voxels per axis

Every measurement runs in a new process with its own Ray. The cohort is a few phantom files with many ids, so that only
the number of volumes differs. Figures are resident set sizes, sampled every 50 ms; shared pages are counted in each
process, so sums are too high. `worker` is the largest single Ray worker.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mmh_ray.config import Config, PhantomConfig, PrepareConfig, TrainConfig

INTERVAL_S = 0.05
MIB = 2**20
CONFIG = Config(
    prepare=PrepareConfig(n4_iterations=(10, 5), shard_volumes=8), train=TrainConfig(simulated_share=0, steps=100)
)
"""Small shards, so that both cohorts fill several; training without simulated volumes, 200 slice groups."""


class Peak:
    """Peak memory of a process (by default this one), of its largest Ray worker and of all together during a block."""

    def __init__(self, pid: int | None = None) -> None:
        self.driver = self.worker = self.total = 0
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                driver = self._process.memory_info().rss
                workers = [_worker_rss(child) for child in self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.driver, self.worker = max(self.driver, driver), max([self.worker, *workers])
            self.total = max(self.total, driver + sum(workers))


def _worker_rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss if process.name().startswith("ray::") else 0
    except psutil.Error:  # the process has ended
        return 0


def make_cohort(folder: Path, volumes: int) -> Path:
    """Manifest of ``volumes`` rows that point to the same few files under distinct ids."""
    from mmh_ray.bids.manifest import to_table, write_manifest
    from mmh_ray.distributed.manifest import build_manifest
    from mmh_ray.distributed.phantom import make_archive

    make_archive(str(folder / "bids"), PhantomConfig(sites=2, subjects_per_site=1, travelers=0))
    rows = build_manifest(str(folder / "bids"), str(folder / "few.parquet"), CONFIG).to_pylist()
    many = [rows[number % len(rows)] | {"image_id": f"{number:06d}"} for number in range(volumes)]
    write_manifest(to_table(many), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def prepare_stage(folder: Path, volumes: int) -> None:
    """`mmh prepare` of the whole cohort."""
    from mmh_ray.distributed.prepare import prepare

    outcome = prepare(str(folder / "manifest.parquet"), str(folder / "prepared"), CONFIG)
    assert outcome.done == volumes, outcome


def stream_stage(folder: Path, _volumes: int) -> None:
    """Read and drop the batches of 100 training steps in this process."""
    from mmh_ray.distributed.cluster import connect
    from mmh_ray.distributed.datasets import training_stream
    from mmh_ray.distributed.domains import UnifiedDomain
    from mmh_ray.shards import PreparedStore

    connect()
    uri = str(folder / "prepared")
    domain = UnifiedDomain.of(PreparedStore(uri), CONFIG)
    steps = sum(1 for _ in training_stream(uri, CONFIG, domain, first_step=0, rank=0, world=1, loaders=1))
    assert steps == CONFIG.train.steps, steps


STAGES: dict[str, Callable[[Path, int], None]] = {"prepare": prepare_stage, "stream": stream_stage}
"""The stages by name, in the order of the data flow; each gets the cohort's folder and the number of volumes."""


def measure(stage: str, volumes: int, folder: Path) -> dict[str, Any]:
    """Peak memory in MiB and seconds of one stage, in this process."""
    if not (folder / "manifest.parquet").exists():
        make_cohort(folder, volumes)
    start = time.monotonic()
    with Peak() as peak:
        STAGES[stage](folder, volumes)
    seconds = time.monotonic() - start
    figures = {key: round(getattr(peak, key) / MIB) for key in ("driver", "worker", "total")}
    return {"stage": stage, "volumes": volumes, **figures, "seconds": round(seconds, 1)}


def measure_scan(edge: int, folder: Path) -> str:
    """Memory that the batch job's worker needs for one head of ``edge`` voxels per axis, with an untrained network."""
    import nibabel as nib
    import numpy as np
    import torch
    from scipy import ndimage

    from mmh_ray.harmonization.job import ModelIdentity
    from mmh_ray.harmonization.target_domain import TargetDomain
    from mmh_ray.harmonization.worker import HarmonizeWorker
    from mmh_ray.imaging.template import template
    from mmh_ray.models.bundle import save_bundle
    from mmh_ray.models.global_harmonizer import GlobalHarmonizer
    from mmh_ray.simulation.anatomy import Person, simulate_anatomy
    from mmh_ray.simulation.phantom import canonical

    head, quantiles = simulate_anatomy(Person(4, scalp=True), 4.0), torch.linspace(0, 1, 257).repeat(2, 2, 1)
    zoom = edge / np.array(head.brain.shape)
    data = 1000 * ndimage.zoom(canonical(head, "T1w", 4.0), zoom, order=1)
    path = folder / "sub-01_T1w.nii.gz"
    nib.save(nib.Nifti1Image(data.astype(np.int16), head.affine @ np.diag([*(1 / zoom), 1])), path)
    model = GlobalHarmonizer(CONFIG.model, CONFIG.train, quantiles)
    save_bundle(folder / "model", model, CONFIG, quantiles=quantiles, data_hash="0" * 64, training={"steps": 0})
    files = {file.name: file.read_bytes() for file in (folder / "model").iterdir()}
    untrained = ModelIdentity("untrained", "0" * 64)
    worker = HarmonizeWorker(files, CONFIG, str(folder / "out"), untrained, [TargetDomain(None, "0" * 64)])
    row = {"image_id": path.name, "uri": str(path), "site": None, "sequence": "T1w", "mask_uri": None}
    template()
    before = psutil.Process().memory_info().rss
    with Peak() as peak:
        [ledger_row] = worker.harmonize(row | {"status": "ok", "reason": None, "earlier": {}})
    taken = peak.driver - before
    memory = f"{taken / MIB:.0f} MiB, {taken / edge**3:.0f} bytes a voxel"
    return f"{edge:>4} voxels an axis: {ledger_row['status']}, {memory}"


def main() -> None:
    """Measure each stage and size in a fresh process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", type=int, default=[20, 200])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--here", nargs=2, metavar=("STAGE", "FOLDER"), help="one stage, in this process")
    parser.add_argument(
        "--scan", nargs="+", type=int, metavar="EDGE", help="one scan instead, of so many voxels an axis"
    )
    arguments = parser.parse_args()
    if arguments.here:
        stage, folder = arguments.here
        size = arguments.volumes[0]
        figures = measure_scan(size, Path(folder)) if stage == "scan" else measure(stage, size, Path(folder))
        print(json.dumps(figures))
        return
    for edge in arguments.scan or ():
        with tempfile.TemporaryDirectory() as folder:
            print(_in_own_process("scan", edge, folder), flush=True)
    if arguments.scan:
        return
    rows = []
    for volumes in arguments.volumes:
        with tempfile.TemporaryDirectory() as folder:
            rows += [_in_own_process(stage, volumes, folder) for stage in STAGES]
    print("stage      volumes  driver MiB  worker MiB  total MiB  seconds")
    for row in rows:
        print("{stage:<10} {volumes:>7} {driver:>11} {worker:>11} {total:>10} {seconds:>8}".format(**row))
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "memory_mib": psutil.virtual_memory().total // MIB}
        machine |= {"system": platform.system(), "python": platform.python_version()}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _in_own_process(stage: str, volumes: int, folder: str) -> Any:
    command = [sys.executable, __file__, "--here", stage, folder, "--volumes", str(volumes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
