"""A cluster with a head and some nodes on this machine, for tests that kill a node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest


@dataclass
class Nodes:
    """A head without CPUs, as in a RayCluster, and nodes of two CPUs each.

    A worker and its loader need 1.5 CPUs, so each node runs one worker.
    """

    cluster: Any
    running: list[Any]

    def holding(self, actor: str) -> list[Any]:
        """Nodes with a process whose name contains that of the actor."""
        return [node for node in self.running if self._runs(node, actor)]

    def kill(self, node: Any) -> None:
        """Kill a node at once, as in a power failure."""
        self.running.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    @staticmethod
    def _runs(node: Any, actor: str) -> bool:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        names = []
        for child in raylet.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                names += child.cmdline()[:1]
        return any(actor in name for name in names)


@contextlib.contextmanager
def running_nodes(number: int) -> Iterator[Nodes]:
    """A cluster with this number of nodes besides the head; it is stopped at the end."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_period_ms", "500")  # a node is declared dead after five periods
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield Nodes(cluster, [cluster.add_node(num_cpus=2) for _ in range(number)])
        finally:
            cluster.shutdown()
