"""Joins or starts Ray, and decides how many CPUs training reserves."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from mmh_ray.distributed.address import check_address, given_address, refused
from mmh_ray.distributed.session_folder import session_options
from mmh_ray.errors import ConfigError
from mmh_ray.stopping import handlers_kept, raise_if_stopped

log = logging.getLogger(__name__)


def connect() -> None:
    """Join the cluster of the environment (a submitted job, RAY_ADDRESS) or start Ray here; once per process.

    Ray on this machine gets at least four CPU slots: training workers and data loading wait for each other, and both
    must find room on a laptop with two cores.

    Raises
    ------
    ConfigError
        If no cluster answers at RAY_ADDRESS, or Ray cannot be started here.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # A lost node counts as alive for some seconds; workers that were placed on it are placed again after this time.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    address = given_address()
    with handlers_kept():
        if address is None:
            _start()
        else:
            _join(address)
    raise_if_stopped()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    log.info("Ray: CPU slots: %d, GPUs: %d, nodes: %d", resources.get("CPU", 0), resources.get("GPU", 0), live_nodes())


def live_nodes() -> int:
    """Number of machines in the cluster now; Ray also lists those that it has lost."""
    return sum(node["Alive"] for node in ray.nodes())


def gpus_of_a_task() -> int:
    """GPUs that a task with a network reserves: one, if the cluster has any."""
    return 1 if ray.cluster_resources().get("GPU", 0) else 0


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
"""Options of every ``ray.init``."""


def _join(address: str) -> None:
    check_address(address)
    try:
        ray.init(**QUIET)  # reads RAY_ADDRESS itself, and the job manager's other variables
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise refused(address, error) from error


def _start() -> None:
    """Start a private cluster on loopback, which ends with this process."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    options = session_options()
    try:
        ray.init(address="local", num_cpus=max(4, os.cpu_count() or 1), include_dashboard=False, **options, **QUIET)
    except Exception as error:  # Ray raises plain ones, too, for example if a busy machine is slow to start it
        received = f"Ray does not start on this machine ({type(error).__name__}: {error})"
        remedy = "Look for processes that use its memory or ports, or name a short folder in RAY_TMPDIR."
        raise ConfigError(received, "room, memory and sockets for a private cluster", remedy) from error


def disconnect() -> None:
    """Leave the cluster, and end it if this process started it; without one nothing happens."""
    ray.shutdown()


def describe_place(needs: Mapping[str, float]) -> str:
    """Why an actor with these needs finds no room: the living nodes are too small, or other work uses them."""
    nodes = _node_resources()
    needed = {name: amount for name, amount in needs.items() if amount}
    request = f"an actor needs {_in_words(needed)} on one node"
    if _capacity(nodes, needed) == 0:
        largest = {name: max(node.get(name, 0.0) for node in nodes) for name in needed}
        return f"{request}, but no node has that (nodes: {len(nodes)}; the most is {_in_words(largest)})"

    available = ray.available_resources()
    free = {name: available.get(name, 0.0) for name in needed}
    cause = "other work or actors that are still starting use it"
    return f"{request}, but {cause} (nodes: {len(nodes)}; free: {_in_words(free)})"


def _in_words(resources: Mapping[str, float]) -> str:
    amounts = [f"{amount:g} {name}" for name, amount in resources.items()]
    return " and ".join(amounts)


def _node_resources() -> list[dict[str, float]]:
    """Resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class TrainingPlacement:
    """What a training reserves in the cluster."""

    workers: int
    resources: dict[str, float]
    """Reserved by each worker for itself and its loaders, which run on its node; only the worker waits for room."""
    loaders: int
    """Processes that make the batches of a worker."""

    def __str__(self) -> str:
        return f"{self.workers} training workers with {_in_words(self.resources)} and {self.loaders} loaders each"


MOST_LOADERS = 8
LOADER_CPUS = 0.5
"""CPUs reserved for a loader, which waits for the trainer most of the time."""
LEAST_CPUS = 1.0
"""CPUs of a worker with one loader in a small cluster."""
POLL_SECONDS = 5.0


def place_training(counts: Sequence[int], use_gpu: bool) -> TrainingPlacement:
    """The first of some numbers of workers that fits on the living nodes, each with as many loaders as possible.

    Raises
    ------
    ConfigError
        If none of the numbers fits; waiting for more nodes could last forever.
    """
    nodes = _node_resources()
    gpus = {"GPU": 1.0} if use_gpu else {}
    for workers in counts:
        for room, cpus, loaders in _shares():
            if _capacity(nodes, {"CPU": room} | gpus) >= workers:
                return TrainingPlacement(workers, {"CPU": cpus} | gpus, loaders)
    cpu_counts = ", ".join(f"{node.get('CPU', 0):g}" for node in nodes)
    received = f"a cluster of {len(nodes)} nodes with {cpu_counts} CPUs"
    needed = f"{LEAST_CPUS:g} CPU"
    if use_gpu:
        gpu_counts = ", ".join(f"{node.get('GPU', 0):g}" for node in nodes)
        received += f" and {gpu_counts} GPUs"
        needed += " and a GPU"
    expected = f"room for {min(counts)} training workers, each on a node with {needed} for it"
    raise ConfigError(received, expected, "Lower train.workers or add nodes.")


def await_placement(counts: Sequence[int], use_gpu: bool, wait_s: float) -> TrainingPlacement:
    """Call :func:`place_training` until it succeeds; its ConfigError is raised after ``wait_s`` seconds."""
    end = time.monotonic() + wait_s
    wait_is_logged = False
    while True:
        try:
            return place_training(counts, use_gpu)
        except ConfigError as error:
            if time.monotonic() >= end:
                received = f"{error.received}, {wait_s:g} s after a node was lost"
                remedy = "Add nodes, or raise train.wait_s; the same command goes on from the last checkpoint."
                raise ConfigError(received, error.expected, remedy) from error
            if not wait_is_logged:
                log.warning("training waits up to %g s for nodes: %s", wait_s, error)
                wait_is_logged = True
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))


class _Share(NamedTuple):
    """The share of a node that a training worker takes."""

    room: float
    """CPUs that the node should have for it."""
    cpus: float
    """CPUs that it reserves."""
    loaders: int


def _shares() -> Iterator[_Share]:
    """Possible shares, the largest first.

    On a large node two CPUs are counted for each loader, but only half a CPU is reserved: its numerical libraries use
    the rest at times.
    """
    for loaders in range(MOST_LOADERS, 0, -1):
        reserved = LOADER_CPUS * loaders
        yield _Share(room=1 + 4 * reserved, cpus=1 + reserved, loaders=loaders)
    for cpus in (1 + LOADER_CPUS, LEAST_CPUS):
        yield _Share(room=cpus, cpus=cpus, loaders=1)


def _capacity(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many workers with these needs fit on the nodes; a worker cannot be split between nodes."""
    count = 0
    for node in nodes:
        count += min(int(node.get(name, 0.0) // amount) for name, amount in needs.items())
    return count
