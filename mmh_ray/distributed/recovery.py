"""Restarts a training that lost workers or nodes, on the part of the cluster that is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Set

from ray.train import ControllerError, Result, TrainingFailedError
from ray.train.torch import TorchTrainer

from mmh_ray.config import TrainConfig
from mmh_ray.distributed.cluster import TrainingPlacement, await_placement, place_training
from mmh_ray.errors import ConfigError
from mmh_ray.stopping import handlers_kept

log = logging.getLogger(__name__)

RETRIES = 3
"""Times that workers may die without a new checkpoint in between."""
PAUSE_SECONDS = 5.0
"""Pause between a failure and the next start: the cluster needs a moment to notice that a node is gone."""


def fit_to_the_end(
    train: TrainConfig, trainer_on: Callable[[TrainingPlacement], TorchTrainer], checkpoints: Callable[[], Set[str]]
) -> Result:
    """Train until an attempt succeeds. After a loss, the next one continues from the last checkpoint.

    It has as many workers as fit on the cluster then. Ray Train's own retries always request the same number of
    workers, and its elastic range picks numbers that do not divide the volumes of a step.

    Parameters
    ----------
    trainer_on:
        Makes the trainer of one attempt. It must raise if a worker dies or cannot be placed, instead of trying again.
    checkpoints:
        Returns the names of the checkpoints so far.

    Raises
    ------
    ConfigError
        If the cluster cannot place ``train.workers`` workers at the start, or later no worker for ``train.wait_s``.
    TrainingFailedError
        If workers died more than :data:`RETRIES` times without a new checkpoint in between.
    """
    placement = place_training([train.workers], train.use_gpu)
    failures = _Failures(train.wait_s, checkpoints)
    while True:
        log.info("training: %s", placement)
        try:
            with handlers_kept():
                return trainer_on(placement).fit()
        except TrainingFailedError as error:
            failures.add(error)
        time.sleep(PAUSE_SECONDS)
        placement = await_placement(train.worker_counts, train.use_gpu, train.wait_s)


class _Failures:
    """Counts deaths of workers since the last checkpoint, and the time without room for them, up to their limits."""

    def __init__(self, wait_s: float, checkpoints: Callable[[], Set[str]]) -> None:
        self._wait_s = wait_s
        self._checkpoints = checkpoints
        self._last_checkpoints = checkpoints()
        self._deaths = 0
        self._last_run = time.monotonic()

    def add(self, error: TrainingFailedError) -> None:
        """Log why an attempt ended; raise if it was one too many."""
        reason = str(error).strip().splitlines()[-1][:300]
        if isinstance(error, ControllerError):  # the workers did not start
            self._add_waiting(reason, error)
            return
        checkpoints = self._checkpoints()
        if checkpoints != self._last_checkpoints:
            self._last_checkpoints = checkpoints
            self._deaths = 0
        self._last_run = time.monotonic()
        self._deaths += 1
        if self._deaths > RETRIES:
            raise error
        log.warning("training goes on from its last checkpoint (%d of %d times): %s", self._deaths, RETRIES, reason)

    def _add_waiting(self, reason: str, error: ControllerError) -> None:
        waited = time.monotonic() - self._last_run
        if waited > self._wait_s:
            received = f"no start of the training workers for {waited:.0f} s ({reason})"
            remedy = (
                "Add nodes, end other jobs or raise train.wait_s; the same command goes on from the last checkpoint."
            )
            raise ConfigError(received, "room for them in the cluster", remedy) from error
        log.warning("training has waited %.0f s of train.wait_s=%g for its workers: %s", waited, self._wait_s, reason)
