"""Share of a training step that waits for data, where the step is as short as a GPU's (it sleeps instead of computing).

    python benchmarks/data_wait.py --loaders 1 2 --step-ms 100 250 500 1000 2000 --steps 30

Simulated people only, no store, so that the loaders do their hardest work, on the grid of `configs/base.yaml`. A step takes the groups of
`train.volumes_per_step`. The first steps, in which the loaders start, do not count. `most groups per second` is what the loaders make when
nobody sleeps: at shorter steps than that allows, waiting is all there is.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import ray

from mmh_ray.config import load_config
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.datasets import ChosenDomain, training_stream

WARM_UP = 4
"""Steps that are not counted: the stream keeps four batches ahead."""


def main() -> None:
    """Print a line for every number of loaders and length of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/base.yaml")
    parser.add_argument("--loaders", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--step-ms", type=int, nargs="+", default=[0, 250, 500, 1000, 2000])
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    config = load_config(arguments.config, [])
    config = replace(config, train=replace(config.train, steps=arguments.steps + WARM_UP))
    domain = ChosenDomain.of_simulation(config)
    connect()
    for loaders in arguments.loaders:
        for step_ms in arguments.step_ms:
            waits = waits_of(config, domain, loaders, step_ms / 1000)
            wait = sum(waits)
            total = wait + len(waits) * step_ms / 1000
            groups = len(waits) * config.train.volumes_per_step
            line = {"loaders": loaders, "step ms": step_ms, "wait share": round(wait / total, 3)}
            print(json.dumps({**line, "groups per second": round(groups / total, 2)}), flush=True)
    ray.shutdown()


def waits_of(config, domain, loaders: int, step_s: float) -> list[float]:
    """Seconds that each step waited for its batch."""
    waits = []
    asked = time.perf_counter()
    for step, _ in enumerate(training_stream(None, config, domain, 0, 0, 1, loaders)):
        waited = time.perf_counter() - asked
        if step >= WARM_UP:
            waits.append(waited)
        time.sleep(step_s)
        asked = time.perf_counter()
    return waits


if __name__ == "__main__":
    main()
