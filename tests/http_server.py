"""Waiting for a server that a test has started."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest


def wait_for_server(url: str, process: subprocess.Popen, log: Path, seconds: float) -> None:
    """Return once the address answers; fail with the end of the log where it does not in time, or the process ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"no server after {seconds} s:\n{log.read_text()[-2000:]}")
