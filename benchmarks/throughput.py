"""Compares images a minute of `mmh harmonize`, of plain processes and of Ray Data, all with the same worker class.

    python benchmarks/throughput.py BIDS [--images 30] [--ways loop:2 pool:2 pool:1 data:2]

Uses the images of the archive with the most voxels. A way is a name and a number of workers: `loop`, processes without
Ray; `pool`, the job as users run it, with its ledger and report; `single`, the same with one image at a time in each
actor; `data`, an actor pool of Ray Data. Each way runs in a new process, and its seconds include everything that it
starts. Only compare ways of the same run, on a machine that is not busy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib

from mmh_ray.bids.rows import Status
from mmh_ray.config import Config
from mmh_ray.harmonization.job import Job, Task
from mmh_ray.harmonization.run import RunInputs, gather_inputs
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.models.bundle import bundle_files
from mmh_ray.models.shipped import BASE_MODEL

WAYS = ("loop:2", "pool:2", "pool:1", "data:2")


def main() -> None:
    """Run the ways one after the other; print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids")
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--ways", nargs="+", default=WAYS, metavar="WAY:WORKERS")
    parser.add_argument("--one-way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_way:
        print(json.dumps(one_way(arguments.one_way, arguments.bids, arguments.images)))
        return
    for way in arguments.ways:
        command = [sys.executable, __file__, arguments.bids, "--images", str(arguments.images), "--one-way", way]
        start = time.perf_counter()
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - start
        row = json.loads(ended.stdout.splitlines()[-1])
        row |= {"seconds": round(seconds, 1), "images a minute": round(60 * arguments.images / seconds, 2)}
        print(json.dumps({"way": way, **row}), flush=True)


def one_way(way: str, bids: str, images: int) -> dict[str, Any]:
    """Harmonize the images in one way; returns their number by status."""
    name, workers = way.split(":")
    scans = largest(Path(bids), images)
    with tempfile.TemporaryDirectory() as folder:
        config = Config()
        images_per_actor = 1 if name == "single" else 0
        settings = replace(config.harmonize, slots=int(workers), images_per_actor=images_per_actor)
        archive = Path(folder, "bids")
        for path in scans:
            copy = archive / path.relative_to(bids)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        job = Job(str(archive), str(Path(folder, "out")), BASE_MODEL, replace(config, harmonize=settings))
        if name in ("pool", "single"):
            from mmh_ray.distributed.harmonize import harmonize

            return {"images": harmonize(job)}
        Path(job.out).mkdir()
        inputs = gather_inputs(job, Path(job.out))
        tasks = [task for task in inputs.tasks(job, {}) if task["status"] == Status.OK]
        run = by_processes if name == "loop" else by_ray_data
        return {"images": dict(Counter(run(tasks, job, inputs, int(workers))))}


def largest(bids: Path, number: int) -> list[Path]:
    """The scans with most voxels."""
    scans = sorted(bids.rglob("sub-*_T1w.nii.gz"))

    def voxels(path: Path) -> int:
        return int(nib.load(path).header["dim"][1:4].prod())

    return sorted(scans, key=voxels, reverse=True)[:number]


def arguments_of(job: Job, inputs: RunInputs, workers: int) -> tuple[Any, ...]:
    """Arguments of a worker."""
    return bundle_files(inputs.model_folder), job.config, job.out, inputs.model, list(inputs.domains), workers


_worker: HarmonizeWorker


def _start(arguments: tuple[Any, ...]) -> None:
    global _worker
    _worker = HarmonizeWorker(*arguments)


def _status(task: Task) -> str:
    (row,) = _worker.harmonize(task)
    return row["status"]


def by_processes(tasks: list[Task], job: Job, inputs: RunInputs, workers: int) -> list[str]:
    """Statuses of images that are harmonized by plain processes."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _start, (arguments_of(job, inputs, workers),)) as pool:
        return list(pool.imap_unordered(_status, tasks))


class _Batches:
    """A worker with the interface that Ray Data needs."""

    def __init__(self, *arguments: Any) -> None:
        self.worker = HarmonizeWorker(*arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"status": [row["status"] for task in batch["task"] for row in self.worker.harmonize(json.loads(task))]}


def by_ray_data(tasks: list[Task], job: Job, inputs: RunInputs, workers: int) -> list[str]:
    """Statuses of images in an actor pool of Ray Data; tasks are sent as JSON: empty fields have no type."""
    import ray

    from mmh_ray.distributed.cluster import connect

    connect()
    rows = ray.data.from_items([{"task": json.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
    done = rows.map_batches(
        _Batches, fn_constructor_args=arguments_of(job, inputs, workers), batch_size=1, concurrency=workers
    )
    return [row["status"] for row in done.take_all()]


if __name__ == "__main__":
    main()
