"""Joining or starting Ray, and the one place that decides how many CPUs each kind of work reserves."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray.data import DataContext

from mmh_ray.distributed.address import check_address, given_address, refused
from mmh_ray.distributed.session_folder import session_options
from mmh_ray.errors import ConfigError
from mmh_ray.stopping import handlers_kept

log = logging.getLogger(__name__)


def connect() -> None:
    """Join the cluster of the environment (a submitted job, RAY_ADDRESS) or start Ray on this machine; once per process.

    On a laptop Ray is told of at least four CPUs, so that training workers and data loading, which wait for each other,
    can both be placed on two cores.

    Raises
    ------
    ConfigError
        If no cluster answers at RAY_ADDRESS, or Ray cannot be started here.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    address = given_address()
    with handlers_kept():
        if address is None:
            _start()
        else:
            _join(address)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    log.info("Ray: %d CPUs, %d GPUs on %d nodes", resources.get("CPU", 0), resources.get("GPU", 0), live_nodes())


def live_nodes() -> int:
    """Machines that the cluster has now; Ray also lists those that it has lost."""
    return sum(node["Alive"] for node in ray.nodes())


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
"""Options of every ``ray.init``."""


def _join(address: str) -> None:
    check_address(address)
    try:
        ray.init(**QUIET)  # reads RAY_ADDRESS itself, and what the job manager put beside it
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise refused(address, error) from error


def _start() -> None:
    """A private cluster on loopback, gone with this process."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    options = session_options()
    try:
        ray.init(address="local", num_cpus=max(4, os.cpu_count() or 1), include_dashboard=False, **options, **QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        received = f"Ray does not start on this machine ({type(error).__name__}: {error})"
        remedy = "Look for processes that take its memory or ports, or name a short folder in RAY_TMPDIR."
        raise ConfigError(received, "room, memory and sockets for a cluster of its own", remedy) from error


def disconnect() -> None:
    """Leave the cluster, and end it if it was started here; without one nothing happens."""
    ray.shutdown()


LOADER_CPUS = 0.5
"""CPUs that an actor of the data stream reserves; it waits for the trainer most of the time."""
MOST_LOADERS = 8
"""Actors of the data stream per training worker at most."""


def training_resources(workers: int, use_gpu: bool) -> tuple[dict[str, float], int]:
    """Resources of a training worker, and data-loading actors per worker, so that both fit into the cluster.

    Raises
    ------
    ConfigError
        If the cluster has too few GPUs or CPUs for the workers; waiting for them could last for ever.
    """
    resources = ray.cluster_resources()
    cpus = resources.get("CPU", 0.0)
    gpus = int(resources.get("GPU", 0))
    remedy = "Lower train.workers or add nodes."
    if use_gpu and gpus < workers:
        raise ConfigError(f"{gpus} GPUs in the cluster", f"{workers}, one per worker", remedy)
    cpus_per_worker = cpus / workers
    if cpus_per_worker < 2 * LOADER_CPUS:
        received = f"{cpus:g} CPUs in the cluster for {workers} workers"
        raise ConfigError(received, f"at least {2 * LOADER_CPUS:g} per worker", remedy)
    trainer_cpus = min(1.0, cpus_per_worker / 2)
    loaders = int((cpus_per_worker - trainer_cpus) / (4 * LOADER_CPUS))
    loaders = max(1, min(MOST_LOADERS, loaders))
    with_gpu = " and a GPU" if use_gpu else ""
    log.info("training: %d workers with %g CPUs%s, %d loaders each", workers, trainer_cpus, with_gpu, loaders)
    worker_resources = {"CPU": trainer_cpus}
    if use_gpu:
        worker_resources["GPU"] = 1.0
    return worker_resources, loaders
