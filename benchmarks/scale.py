"""Measures the cost of an image in the ledger and in the object store, for the calculation in docs/cluster.md.

    python benchmarks/scale.py --images 2000

The ledger writes every row to the disk before the next one, so that its rows per second depend on the disk. The
messages to an actor and back are counted in bytes of pickle, which Ray uses for plain values.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

from mmh_ray.bids.ledger import Journal
from mmh_ray.bids.rows import LedgerRow, Status
from mmh_ray.harmonization.outputs import ledger_row
from mmh_ray.harmonization.target_domain import TargetDomain
from mmh_ray.models.bundle import bundle_files
from mmh_ray.models.shipped import BASE_MODEL, shipped_bundle

UNIFIED = TargetDomain(None, "a" * 64)


def row_of(task: Any) -> LedgerRow:
    """The row of a finished image."""
    row = ledger_row(task, UNIFIED, Status.DONE, output=f"{task['image_id']}.nii.gz", input_sha256="d" * 64)
    row["model_hash"] = "b" * 64
    return row


def main() -> None:
    """Print one figure per line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    images = parser.parse_args().images
    tasks = [task_of(number) for number in range(images)]
    rows = [row_of(task) for task in tasks]
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
    for name, value in figures.items():
        print(json.dumps({name: value}))


def task_of(number: int) -> Any:
    """The task of an image, as the driver sends it to an actor."""
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
