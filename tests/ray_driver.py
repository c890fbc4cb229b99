"""Waiting for what a run in a process of its own has reached."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

PATIENCE_S = 900


def wait_until(reached: Callable[[], object], driver: subprocess.Popen[bytes], pause_s: float = 0.05) -> None:
    """Until something is there while the run still goes on; looking takes the processor from the run."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert driver.poll() is None, "the run ended before"
        assert time.monotonic() < deadline
        time.sleep(pause_s)
