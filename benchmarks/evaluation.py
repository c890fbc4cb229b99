"""How long an evaluation takes, per volume and per measure, and whether the driver's memory stays flat as the cohort grows.

    python benchmarks/evaluation.py --volumes 100 1000 --out /tmp/evaluation-benchmark

Makes small phantoms of one sequence, writes them under a gamma curve as the archive `ours`, and runs `mmh evaluate` in a process
of its own for every size, with all subjects scored. Memory is the peak resident set of that driver process, without Ray's workers.
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
from pathlib import Path

import psutil

from mmh_ray.config import Config, PhantomConfig
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.imaging.volume import read_volume, write_volume

SITES, SPACING_MM = 4, 8.0
SETTINGS = ["evaluate.subjects=all", "model.sequences=[T1w]", "prepare.n4_iterations=[5]", "evaluate.draws=200"]


def main() -> None:
    """Make the largest archive once, evaluate its first subjects for every size, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, nargs="+", default=[40, 80], help="sizes of the cohort")
    parser.add_argument("--out", type=Path, required=True, help="folder for archives and results")
    parser.add_argument("--cnn", default="none", choices=["none", "some", "all"], help="the setting evaluate.cnn")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    for volumes in sorted(arguments.volumes):
        archive, ours = _make(arguments.out / str(volumes), volumes)
        seconds, megabytes = _evaluate(archive, ours, arguments.out / str(volumes) / "evaluation", arguments.cnn)
        _show(arguments.out / str(volumes) / "evaluation" / "evaluation.json", seconds, megabytes)


def _make(root: Path, volumes: int) -> tuple[Path, Path]:
    """Manifest of an archive of that many T1w volumes, and the folder of the other method's."""
    bids, manifest, ours = root / "bids", root / "manifest.parquet", root / "ours"
    if not manifest.exists():
        make_archive(str(bids), PhantomConfig(SITES, volumes // SITES, 0, SPACING_MM, lesions=0))
        for path in bids.glob("sub-*/anat/*_T1w.nii.gz"):
            scan = read_volume(path)
            write_volume(scan.like(scan.data**0.9), ours / path.name)
        build_manifest(str(bids), str(manifest), Config())
    return manifest, ours


def _evaluate(manifest: Path, ours: Path, out: Path, cnn: str) -> tuple[float, float]:
    """Seconds of the command, and the driver's peak resident megabytes."""
    archives = ["--archive", f"raw={manifest}", "--archive", f"ours={ours}"]
    command = [
        sys.executable,
        "-m",
        "mmh_ray.cli",
        "evaluate",
        *archives,
        "--out",
        str(out),
        *SETTINGS,
        f"evaluate.cnn={cnn}",
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise SystemExit(f"mmh evaluate ended with code {code}")
    return time.perf_counter() - start, peak[0]


def _watch(process: subprocess.Popen, peak: list[float]) -> None:
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak[0] = max(peak[0], driver.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            return
        time.sleep(0.2)


def _show(path: Path, seconds: float, megabytes: float) -> None:
    about = json.loads(path.read_text())["about"]
    images = sum(about["images"].values())
    print(
        f"\n{images} volumes: {seconds:.0f} s in all, {seconds / images:.2f} s a volume, driver {megabytes:.0f} MB at most"
    )
    print("| measure | processor seconds a volume | calls |\n|---|---|---|")
    for name, own in sorted(about["processor_seconds"].items(), key=lambda item: -item[1]["seconds"]):
        print(f"| {name} | {own['seconds'] / images:.4f} | {own['calls']} |")


if __name__ == "__main__":
    main()
