"""Measures how long training waits for its data: its own stream of batches, with a pause in place of each step.

    python benchmarks/data_wait.py PREPARED [section.key=value ...] [--step 0.5] [--loaders 1 2] [--steps 40]

Prints a row for each number of loaders: the share of the time spent waiting, and the longest wait. The first steps, in
which the loaders start, are left out.
"""

from __future__ import annotations

import argparse
import json
import time

from mmh_ray.config import load_config
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.datasets import training_stream
from mmh_ray.distributed.domains import UnifiedDomain
from mmh_ray.shards import PreparedStore

LEFT_OUT = 10
"""Steps until the loaders run and the queue is full."""


def main() -> None:
    """Print a row for each number of loaders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared")
    parser.add_argument("--step", type=float, default=0.5, help="seconds of a step")
    parser.add_argument("--loaders", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    config = load_config(None, [*arguments.settings, f"train.steps={LEFT_OUT + arguments.steps}"])
    domain = UnifiedDomain.of(PreparedStore(arguments.prepared), config)
    connect()
    for loaders in arguments.loaders:
        waits = []
        before = time.perf_counter()
        for _ in training_stream(arguments.prepared, config, domain, 0, 0, 1, loaders):
            waits.append(time.perf_counter() - before)
            time.sleep(arguments.step)
            before = time.perf_counter()
        waited = sum(waits[LEFT_OUT:])
        share = waited / (waited + arguments.step * arguments.steps)
        row = {"loaders": loaders, "step": arguments.step, "volumes a step": config.train.volumes_per_step}
        print(json.dumps({**row, "waited": round(share, 3), "longest wait": round(max(waits[LEFT_OUT:]), 2)}))


if __name__ == "__main__":
    main()
