"""A cluster that runs already, as an operator starts it, for the tests that submit jobs to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE_S = 900
TINY = [
    "phantom.sites=2",
    "phantom.subjects_per_site=3",
    "phantom.travelers=0",
    "phantom.spacing_mm=6",
    "grid.spacing_mm=6",
    "grid.shape=[32,40,32]",
    "prepare.n4=false",
    "manifest.val_fraction=0.25",
    "manifest.test_fraction=0",
    "model.channels=[8,16]",
    "train.steps=4",
    "train.validation_groups=1",
]


@dataclass
class Head:
    """A running cluster: where jobs are submitted, and the environment of those who may."""

    address: str
    environment: dict[str, str]
    metrics: str
    """Where Prometheus would read the node's metrics."""

    def submit(self, repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Submit a command from the repository and wait for its end."""
        submit = [ray_command(), "job", "submit", "--address", self.address, "--working-dir", ".", "--", *command]
        return subprocess.run(
            submit,
            cwd=repository,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


def ray_command() -> str:
    """The `ray` of this Python's environment."""
    return str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running_head(variables: Mapping[str, str]) -> Iterator[Head]:
    """`ray start --head` with token authentication on free ports and these variables; stopped with its children."""
    with tempfile.TemporaryDirectory(prefix="mmh", ignore_cleanup_errors=True) as folder:  # short: it holds sockets
        token = Path(folder, "token")
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        own = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI")
        environment = {name: value for name, value in os.environ.items() if name not in own} | dict(variables)
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # as in an activated environment
        environment["RAY_metrics_report_interval_ms"] = "1000"
        environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "2"  # as users have it
        # A machine that runs other tests as well needs longer than Ray grants itself.
        environment |= {"RAY_raylet_start_wait_time_s": "600", "RAY_agent_register_timeout_ms": "600000"}
        port, dashboard, client, agent, metrics = (free_port() for _ in range(5))
        command = [ray_command(), "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", f"{folder}/ray"]
        command += ["--port", str(port), "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)]
        command += ["--dashboard-agent-listen-port", str(agent)]  # another Ray on this machine has the default one
        command += ["--metrics-export-port", str(metrics)]
        with open(f"{folder}/head.log", "w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                address = f"http://127.0.0.1:{dashboard}"
                wait_for(address, environment, process, Path(folder, "head.log"))
                yield Head(address, environment, f"http://127.0.0.1:{metrics}/metrics")
            finally:
                kill_with_children(process)


def kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """End Ray at once: asked to end, it takes half a minute, and there is nothing left to be saved."""
    started = psutil.Process(process.pid)
    for each in (started, *started.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait(60)


def wait_for(address: str, environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the cluster runs a job of a client that has the token."""
    deadline = time.monotonic() + PATIENCE_S
    trial = [ray_command(), "job", "submit", "--address", address, "--", "true"]
    while subprocess.run(trial, env=environment, capture_output=True, check=False).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)
