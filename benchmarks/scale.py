"""What the driver, the ledger and the object store take for an image: the inputs of the calculation in docs/cluster.md.

    python benchmarks/scale.py --images 2000

Real parts around an empty worker: the pool of actors, the ledger with its fsync, and what travels to an actor and back. The driver's
milliseconds are the processor's; the ledger waits for the disk.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from mmh_ray.bids.ledger import Journal
from mmh_ray.bids.rows import LedgerRow, Status
from mmh_ray.distributed.actor_pool import ActorPool
from mmh_ray.distributed.cluster import connect
from mmh_ray.harmonization.outputs import ledger_row
from mmh_ray.harmonization.target_domain import TargetDomain
from mmh_ray.models.bundle import bundle_files
from mmh_ray.models.shipped import BASE_MODEL, shipped_bundle

UNIFIED = TargetDomain(None, "a" * 64)


class Empty:
    """A worker that does nothing."""

    def harmonize(self, task: Any) -> list[LedgerRow]:
        """The row of a finished image."""
        return [ledger_row(task, UNIFIED, Status.DONE, output=f"{task['image_id']}.nii.gz", input_sha256="d" * 64)]


def main() -> None:
    """Print one figure a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    images = parser.parse_args().images
    tasks = [task_of(number) for number in range(images)]
    rows = [Empty().harmonize(task)[0] for task in tasks]
    for row in rows:
        row["model_hash"] = "b" * 64
    files = bundle_files(shipped_bundle(BASE_MODEL))
    figures = {
        "bytes of a task": len(pickle.dumps(tasks[0])),
        "bytes of a ledger row": len(pickle.dumps(rows[0])),
        "bytes of the model, once a node": sum(map(len, files.values())),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        start = time.perf_counter()
        with Journal(out) as journal:
            for row in rows:
                journal.append(row)
            figures["ledger, rows per second"] = round(images / (time.perf_counter() - start))
            start = time.perf_counter()
        figures["ledger, seconds to close"] = round(time.perf_counter() - start, 2)
    connect()
    start_actor = ray.remote(num_cpus=0, max_concurrency=2)(Empty).remote
    for actors in (2, 4):
        pool = ActorPool(start_actor, actors, 2, 600, 600, str, lambda task, problem: [])
        came_up: list[float] = []
        start = time.perf_counter()
        processor = time.process_time()
        for _ in pool.run(tasks, lambda came_up=came_up: came_up.append(time.perf_counter())):
            pass
        spent = time.process_time() - processor
        figures[f"driver, milliseconds an image, {actors} actors"] = round(1000 * spent / images, 2)
        figures[f"pool, images per second, {actors} actors"] = round(images / (time.perf_counter() - came_up[0]))
    ray.shutdown()
    for name, value in figures.items():
        print(json.dumps({name: value}))


def task_of(number: int) -> Any:
    """An image of an archive as the driver hands it out."""
    image_id = f"sub-{number:05d}_ses-01_T1w"
    return {
        "image_id": image_id,
        "uri": f"/data/archive/sub-{number:05d}/ses-01/anat/{image_id}.nii.gz",
        "subject": f"{number:05d}",
        "session": "01",
        "site": "alder",
        "sequence": "T1w",
        "mask": None,
        "status": Status.OK,
        "reason": None,
        "earlier": {},
    }


if __name__ == "__main__":
    main()
