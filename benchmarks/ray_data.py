"""The pool of actors of `mmh harmonize` beside a Ray Data pipeline of the same worker class, on the same images.

    python benchmarks/ray_data.py --scans 60 --repeats 3

Both get two actors of one image at a time on a cluster of their own of two CPUs, and take turns; the model is an untrained one on a grid of
6 mm, so that an image is short and what the two add to it shows. Then once each with an image that kills its process, and with one that
never ends (the pool's `harmonize.timeout_s` is 20 s; Ray Data has none): which rows come out within the patience?
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from node_loss import CONFIG, make_archive, make_bundle

from mmh_ray.config import Config
from mmh_ray.distributed import harmonize as driver
from mmh_ray.harmonization.job import Job
from mmh_ray.harmonization.run import RunInputs, gather_inputs
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.models.bundle import bundle_files

PATIENCE_S = 240
TIMEOUT_S = 20.0


class SpoiltWorker(HarmonizeWorker):
    """A worker that dies of the first image, or never ends it, if the environment says so."""

    def harmonize(self, task: Any) -> Any:
        """As the worker's own for every other image."""
        if task["image_id"] == "sub-0000_T1w":
            if os.environ.get("SPOILT") == "dies":
                os._exit(1)
            if os.environ.get("SPOILT") == "never ends":
                time.sleep(10 * PATIENCE_S)
        return super().harmonize(task)


class RayDataWorker:
    """The same worker as Ray Data calls it."""

    def __init__(self, files: dict[str, bytes], config: Config, out: str, inputs: RunInputs) -> None:
        self._worker = SpoiltWorker(files, config, out, inputs.model, inputs.domains, 2)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The status of one image."""
        (ledger_row,) = self._worker.harmonize(json.loads(row["task"]) | {"earlier": {}})
        return {"image_id": ledger_row["image_id"], "status": str(ledger_row["status"])}


def main() -> None:
    """Compare, or be one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one[0], Path(arguments.one[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_archive(root / "bids", arguments.scans)
        make_bundle(root / "bundle")
        seconds: dict[str, list[float]] = {"pool": [], "ray data": []}
        for _ in range(arguments.repeats):
            for kind, found in seconds.items():
                found.append(run(kind, root, "")["seconds"])
        medians = {kind: round(statistics.median(found), 1) for kind, found in seconds.items()}
        ratio = round(medians["ray data"] / medians["pool"], 2)
        print(json.dumps({"seconds": seconds, "median": medians, "ray data over pool": ratio}))
        for spoilt in ("dies", "never ends"):
            for kind in seconds:
                print(json.dumps({"the first image": spoilt, "kind": kind, **run(kind, root, spoilt)}), flush=True)


def run(kind: str, root: Path, spoilt: str) -> dict[str, Any]:
    """One measurement in a process of its own, ended after the patience."""
    command = [sys.executable, __file__, "--one", kind, str(root)]
    environment = {**os.environ, "SPOILT": spoilt, "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.DEVNULL)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        said.seek(0)
        lines = said.read().splitlines()
    statuses = Counter(line.split()[1] for line in lines if line.startswith("row "))
    ends = [line for line in lines if line.startswith("end ")]
    return {"seconds": float(ends[0].split()[1]) if ends else None, "rows": dict(statuses)}


def measure(kind: str, root: Path) -> None:
    """Print a line for every row as it comes, and the seconds from the first actor's start to the last row."""
    harmonize = replace(CONFIG.harmonize, slots=2, images_per_actor=1, timeout_s=TIMEOUT_S)
    config = replace(CONFIG, harmonize=harmonize)
    out = tempfile.mkdtemp(dir=root)
    job = Job(str(root / "bids"), out, str(root / "bundle"), config)
    inputs = gather_inputs(job)
    tasks = inputs.tasks(job, {})
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    start = time.perf_counter()
    if kind == "pool":
        driver.HarmonizeWorker = SpoiltWorker  # type: ignore[misc]
        for rows in driver.run_pool(tasks, job, inputs):
            print("row", rows[0]["status"], flush=True)
    else:
        ray.data.DataContext.get_current().enable_progress_bars = False
        plain = [{"task": json.dumps({**task, "earlier": {}}, default=str)} for task in tasks]
        statuses = ray.data.from_items(plain, override_num_blocks=len(plain)).map(
            RayDataWorker,
            fn_constructor_args=(bundle_files(root / "bundle"), config, out, inputs),
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=1),
        )
        for row in statuses.iter_rows():
            print("row", row["status"], flush=True)
    print("end", time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
