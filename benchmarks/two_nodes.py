"""Starts a head without CPUs and two nodes of two CPUs on this machine, for benchmarks that kill a node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def two_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """The cluster and its two nodes; it is stopped at the end."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=2) for _ in range(2)]
    finally:
        cluster.shutdown()


@contextmanager
def running(address: str, *arguments: str, folder: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mmh` in a new process that joins the cluster; it is killed at the end."""
    command = [sys.executable, "-m", "mmh_ray.cli", *arguments]
    driver = subprocess.Popen(command, cwd=folder, env={**os.environ, "RAY_ADDRESS": address})
    try:
        yield driver
    finally:
        driver.kill()


def wait_until(reached: Callable[[], bool], driver: subprocess.Popen[bytes], pause_s: float) -> None:
    """Wait until a condition is met; exit if the command ends first."""
    while not reached():
        if driver.poll() is not None:
            raise SystemExit("the run ended before a node was to be killed")
        time.sleep(pause_s)
