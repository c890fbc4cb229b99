"""Joining or starting Ray, and the one place that decides how many CPUs each kind of work reserves."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray.data import DataContext

log = logging.getLogger(__name__)


def connect() -> None:
    """Join the cluster of the environment (a submitted job, RAY_ADDRESS) or start Ray on this machine; once per process.

    On a laptop Ray is told of at least four CPUs, so that training workers and data loading, which wait for each other,
    can both be placed on two cores.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private cluster on loopback, gone with this process
        ray.init(address="local", num_cpus=max(4, os.cpu_count() or 1), include_dashboard=False, **quiet)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    log.info("Ray: %d CPUs, %d GPUs on %d nodes", resources.get("CPU", 0), resources.get("GPU", 0), len(ray.nodes()))
