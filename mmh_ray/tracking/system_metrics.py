"""Measures processors, memory, disk, network and GPUs during training, with MLflow's monitors."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

log = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
"""Seconds between two measurements; MLflow's default."""


class SystemMetrics:
    """Measures the current machine every few seconds; raises nothing.

    MLflow's own thread would send to the server, which a training worker may not reach. So a worker calls :meth:`due`
    from time to time, and sends the values with its other metrics.

    Parameters
    ----------
    part:
        Name of the machine or task, if the run has several; it becomes part of the metrics' names.
    every_s:
        Seconds between two measurements.
    """

    def __init__(self, part: str | None = None, every_s: float = EVERY_SECONDS) -> None:
        import psutil

        self._prefix = "system/" if part is None else f"system/{part}/"
        self._every_s = every_s
        self._latest = time.monotonic()
        self._monitors: list[BaseMetricsMonitor] | None = None
        psutil.cpu_percent()  # the next call returns the share since this one

    def due(self) -> dict[str, float]:
        """Values by MLflow's names of system metrics; empty until the next measurement is due."""
        now = time.monotonic()
        if now - self._latest < self._every_s:
            return {}
        self._latest = now
        try:
            return self._measure()
        except Exception as error:  # from a driver or the operating system; it must not end a training
            log.warning("no more system metrics: %s", error)
            self._monitors = []
            return {}

    def _measure(self) -> dict[str, float]:
        if self._monitors is None:
            self._monitors = _make_monitors()
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            for name, value in monitor.aggregate_metrics().items():
                values[self._prefix + name] = float(value)
            monitor.clear_metrics()
        return values


def _make_monitors() -> list[BaseMetricsMonitor]:
    """MLflow's monitors; they take seconds to import, so this is called at the first measurement."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:  # no GPU, or nvidia-ml-py is not installed
        log.debug("no system metrics of GPUs: %s", error)
    return monitors
