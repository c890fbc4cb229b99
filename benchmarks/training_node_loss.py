"""Measures the seconds that a training on a cluster of a head and two nodes loses when a node dies.

    python benchmarks/training_node_loss.py [--steps 120] [--killed-at 45]

Starts a head without CPUs and two nodes of two CPUs on this machine, and `mmh train-global` with two workers, on
simulated people alone. When `--killed-at` steps are in MLflow, a node is killed with all of its processes. Training
goes on from its last checkpoint on the other node. Prints the cost of the loss: the time from the kill until training
has passed the last step before it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import mlflow
from mlflow.entities import Metric
from two_nodes import running, two_nodes, wait_until

SETTINGS = (
    "grid.spacing_mm=6.0",
    "grid.shape=[32,40,32]",
    "model.channels=[16,32]",
    "train.volumes_per_step=4",
    "train.warmup_steps=5",
    "train.validation_groups=4",
    "train.workers=2",
)
CHECKPOINT_EVERY = 10
EXPERIMENT = "node-loss"


def main() -> None:
    """Train, kill a node, and print the cost of the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--killed-at", type=int, default=45, help="steps that are in MLflow then")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, two_nodes() as (cluster, nodes):
        tracking = f"sqlite:///{folder}/mlflow.db"
        settings = settings_of(folder, tracking, arguments.steps)
        start = time.time()
        with running(cluster.address, "train-global", *settings, folder=Path(folder)) as driver:
            wait_until(lambda: len(losses(tracking)) >= arguments.killed_at, driver, 1)
            killed = time.time()
            cluster.remove_node(nodes[0], allow_graceful=False)
            code = driver.wait()
            end = time.time()
        entries = losses(tracking)
        cost = cost_of_loss(entries, killed)
        steps = len({entry.step for entry in entries})
    print(json.dumps({"code": code, "seconds": round(end - start), "steps in MLflow": steps, **cost}))


def settings_of(folder: str, tracking: str, steps: int) -> list[str]:
    """Settings of the training."""
    return [
        *SETTINGS,
        f"train.steps={steps}",
        f"train.validate_every={steps}",
        f"train.checkpoint_every={CHECKPOINT_EVERY}",
        f"train.storage={folder}/runs",
        f"tracking.uri={tracking}",
        f"tracking.experiment={EXPERIMENT}",
    ]


def losses(tracking: str) -> list[Metric]:
    """The losses in MLflow, sorted by time; none before the run has begun."""
    client = mlflow.MlflowClient(tracking)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id])
    entries = [entry for run in runs for entry in client.get_metric_history(run.info.run_id, "loss")]
    return sorted(entries, key=lambda entry: entry.timestamp)


def cost_of_loss(entries: list[Metric], killed: float) -> dict[str, float]:
    """Seconds until the next step was done, and until training had passed the last step before the kill."""
    before = [entry for entry in entries if entry.timestamp <= 1000 * killed]
    after = [entry for entry in entries if entry.timestamp > 1000 * killed]
    reached = max(entry.step for entry in before)
    if all(entry.step <= reached for entry in after):
        raise SystemExit(f"no step after step {reached}, which was done before the node was lost; give more --steps")
    first = after[0]
    caught_up = next(entry for entry in after if entry.step > reached)
    seconds_a_step = (before[-1].timestamp - before[0].timestamp) / 1000 / (len(before) - 1)
    return {
        "last step before": reached,
        "first step after": first.step,
        "seconds a step before": round(seconds_a_step, 2),
        "seconds until a step was done again": round(first.timestamp / 1000 - killed, 1),
        "seconds lost": round(caught_up.timestamp / 1000 - killed - seconds_a_step, 1),
    }


if __name__ == "__main__":
    main()
