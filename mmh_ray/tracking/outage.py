"""Waiting for an MLflow server that is down: work of hours must not be lost because the server restarts as it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mmh_ray.tracking.store import without_credentials

log = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""Seconds for which a server that does not answer is waited for."""
PAUSE_S = 5.0
"""Between two attempts. An attempt itself takes minutes by MLflow's own retries."""

T = TypeVar("T")


def patiently(call: Callable[[], T]) -> T:
    """What a call to MLflow returns; while the server cannot be reached, it is called again for :data:`PATIENCE_S` seconds.

    The call must do no harm if it is made twice. Every answer of the server that is an error is raised at once.
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
                log.warning("MLflow does not answer, and is waited for, for %.0f s at most: %s", PATIENCE_S, reason)
            has_warned = True
        time.sleep(PAUSE_S)


def is_unreachable(error: BaseException) -> bool:
    """Whether an error of MLflow tells that no answer came, or none but that of a proxy or a server that is starting."""
    import requests

    cause = error.__cause__ or error.__context__
    return isinstance(cause, requests.exceptions.RequestException)
