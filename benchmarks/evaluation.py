"""Measures seconds and memory of an evaluation, per volume and per metric, and whether memory grows with the cohort.

    python benchmarks/evaluation.py --volumes 100 1000 --out /tmp/evaluation-benchmark

Makes small phantoms of one sequence, and writes them with a gamma curve as the archive `ours`. For every size, it runs
`mmh evaluate` with all subjects in a new process and cluster. Memory is what a process does not share with others: the
peaks of the driver, of the largest Ray worker, and of all processes together. Prints a page for this folder, and writes
the same figures to `OUT/benchmark.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from mmh_ray.config import Config, PhantomConfig
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.imaging.volume import read_volume, write_volume
from mmh_ray.provenance import write_json

SITES, SPACING_MM = 4, 8.0
SETTINGS = ["evaluate.subjects=all", "model.sequences=[T1w]", "prepare.n4_iterations=[5]", "evaluate.draws=200"]


def main() -> None:
    """Make and evaluate an archive of every size; print and write seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, nargs="+", default=[40, 80], help="sizes of the cohort")
    parser.add_argument("--out", type=Path, required=True, help="folder for archives and results")
    parser.add_argument("--cnn", default="none", choices=["none", "some", "all"], help="the setting evaluate.cnn")
    arguments = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    runs = []
    for volumes in sorted(arguments.volumes):
        root = arguments.out / str(volumes)
        archive, ours = _make(root, volumes)
        seconds, peaks = _evaluate(archive, ours, root / "evaluation", arguments.cnn)
        runs.append(_account(root / "evaluation" / "evaluation.json", seconds, peaks))
    write_json(arguments.out / "benchmark.json", {"machine": machine, "cnn": arguments.cnn, "runs": runs})
    _print_page(machine, arguments.cnn, runs)


def _make(root: Path, volumes: int) -> tuple[Path, Path]:
    """Manifest of an archive of T1w volumes, and the folder with the outputs of another method."""
    bids, manifest, ours = root / "bids", root / "manifest.parquet", root / "ours"
    if not manifest.exists():
        make_archive(str(bids), PhantomConfig(SITES, volumes // SITES, 0, SPACING_MM, lesions=0))
        for path in bids.glob("sub-*/anat/*_T1w.nii.gz"):
            scan = read_volume(path)
            write_volume(scan.like(scan.data**0.9), ours / path.name)
        build_manifest(str(bids), str(manifest), Config())
    return manifest, ours


def _evaluate(manifest: Path, ours: Path, out: Path, cnn: str) -> tuple[float, dict[str, float]]:
    """Seconds of the command, and peak MiB of the driver, of the largest worker and of all processes."""
    archives = ["--archive", f"raw={manifest}", "--archive", f"ours={ours}", "--out", str(out)]
    command = [sys.executable, "-m", "mmh_ray.cli", "evaluate", *archives, *SETTINGS, f"evaluate.cnn={cnn}"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks = {"driver_mb": 0.0, "worker_mb": 0.0, "all_mb": 0.0}
    watcher = threading.Thread(target=_watch, args=(process, peaks))
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise SystemExit(f"mmh evaluate ended with code {code}")
    return time.perf_counter() - start, peaks


def _watch(process: subprocess.Popen, peaks: dict[str, float]) -> None:
    """Update the peaks twice a second."""
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            children = driver.children(recursive=True)
            workers = [_unshared_mb(child) for child in children if child.name().startswith("ray::")]
            others = [_unshared_mb(child) for child in children if not child.name().startswith("ray::")]
            current = {"driver_mb": _unshared_mb(driver), "worker_mb": max(workers, default=0.0)}
            current["all_mb"] = current["driver_mb"] + sum(workers) + sum(others)
            peaks |= {name: max(peaks[name], megabytes) for name, megabytes in current.items()}
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.5)


def _unshared_mb(process: psutil.Process) -> float:
    """Resident MiB that no other process shares; Ray's object store is not counted."""
    memory = process.memory_info()
    return (memory.rss - memory.shared) / 2**20


def _account(path: Path, seconds: float, peaks: dict[str, float]) -> dict[str, Any]:
    """Figures of a run: total seconds, processor seconds by metric, and memory peaks."""
    about = json.loads(path.read_text())["about"]
    return {
        "volumes": sum(about["images"].values()),
        "seconds": seconds,
        **peaks,
        "processor_seconds": about["processor_seconds"],
    }


def _print_page(machine: str, cnn: str, runs: list[dict[str, Any]]) -> None:
    print(f"# Seconds and memory of `mmh evaluate`, {date.today()}\n\n{machine}. `evaluate.cnn={cnn}`.\n")
    print("| volumes | seconds | seconds a volume | driver MiB | largest worker MiB | all MiB |")
    print("|---|---|---|---|---|---|")
    for run in runs:
        each = run["seconds"] / run["volumes"]
        memory = " | ".join(f"{run[name]:.0f}" for name in ("driver_mb", "worker_mb", "all_mb"))
        print(f"| {run['volumes']} | {run['seconds']:.0f} | {each:.2f} | {memory} |")
    print("\nProcessor seconds a volume, all methods together:\n")
    print(f"| metric, by volumes | {' | '.join(str(run['volumes']) for run in runs)} |\n|---|{'---|' * len(runs)}")
    last = runs[-1]["processor_seconds"]
    for name in sorted(last, key=lambda name: -last[name]["seconds"]):
        cells = []
        for run in runs:
            seconds = run["processor_seconds"].get(name, {"seconds": 0})["seconds"]
            cells.append(f"{seconds / run['volumes']:.4f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
