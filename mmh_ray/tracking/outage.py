"""Waits for an MLflow server that is down: a restart of the server must not cost the results of hours."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mmh_ray.tracking.store import without_credentials

log = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""How long to wait for a server that does not answer, in seconds."""
PAUSE_S = 5.0
"""Seconds between two attempts. Each attempt takes minutes, by MLflow's own retries."""

T = TypeVar("T")


def retry_while_unreachable(call: Callable[[], T]) -> T:
    """Call MLflow and return the result; if the server cannot be reached, retry for :data:`PATIENCE_S` seconds.

    Repeating the call must do no harm. Any error that the server returns is raised at once.
    """
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + PATIENCE_S
    has_warned = False
    while True:
        try:
            return call()
        except MlflowException as error:
            if not is_unreachable(error) or time.monotonic() > deadline:
                raise
            if not has_warned:
                reason = without_credentials(error)
                log.warning("MLflow does not answer; waiting for up to %.0f s: %s", PATIENCE_S, reason)
            has_warned = True
        time.sleep(PAUSE_S)


def is_unreachable(error: BaseException) -> bool:
    """Whether an MLflow error means that no answer came, or only one from a proxy or a server that is starting."""
    import requests

    cause = error.__cause__ or error.__context__
    return isinstance(cause, requests.exceptions.RequestException)
