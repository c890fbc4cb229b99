"""Starts and ends the MLflow run of a target site's training, and sends its metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from mmh_ray import tracking
from mmh_ray.config import Config
from mmh_ray.distributed.run_storage import open_storage
from mmh_ray.shards import PreparedStore

METRICS = "target-metrics"
"""Folder in the storage with an outbox per run, named after the run's id: a failed training is not resumed."""


@dataclass(frozen=True)
class SiteRun:
    """The MLflow run of a site."""

    run_id: str
    outbox: tracking.MetricsOutbox
    """Where its metrics wait for MLflow."""
    sending: contextlib.ExitStack
    """Sends them until it is closed."""

    @classmethod
    def start(cls, site: str, store: PreparedStore, config: Config, facts: Mapping[str, str]) -> SiteRun:
        """Start the run and begin to send."""
        run_id = tracking.start_run(config, f"target-{site}", None, facts)
        tracking.log_input(run_id, tracking.RunInput("training", store.data_hash, store.uri))
        storage, root = open_storage(config.target.storage)
        outbox = tracking.MetricsOutbox(storage, f"{root}/{METRICS}/{run_id}")
        sending = contextlib.ExitStack()
        sending.enter_context(tracking.sending_metrics(outbox, run_id))
        return cls(run_id, outbox, sending)

    def finish(self) -> None:
        """Send the last metrics and end the run."""
        self.sending.close()
        tracking.finish(self.run_id)
        self.outbox.remove_folder()

    def fail(self) -> None:
        """Send the last metrics and mark the run as failed."""
        self.sending.close()
        tracking.mark_failed(self.run_id)
        self.outbox.remove_folder()


def send_left(config: Config) -> None:
    """Send metrics that earlier trainings with the same storage could not send."""
    storage, root = open_storage(config.target.storage)
    tracking.send_left(storage, f"{root}/{METRICS}")
