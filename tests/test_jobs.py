"""A job submitted to a cluster that runs already, as users do it: `ray job submit --working-dir . -- python jobs/train_global.py`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmh_ray.cli import main

pytestmark = [pytest.mark.slow]

PATIENCE_S = 900
SMALL = [
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


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with token authentication on free ports; stopped by its process group."""
    with tempfile.TemporaryDirectory(prefix="mmh", ignore_cleanup_errors=True) as folder:  # short: it holds sockets
        token = Path(folder, "token")
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        own = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI")
        environment = {name: value for name, value in os.environ.items() if name not in own}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # as in an activated environment
        port, dashboard, client, agent = (free_port() for _ in range(4))
        command = [ray_command(), "start", "--head", "--block", "--num-cpus", "4", "--temp-dir", f"{folder}/ray"]
        command += ["--port", str(port), "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)]
        command += ["--dashboard-agent-listen-port", str(agent)]  # another Ray on this machine has the default one
        with open(f"{folder}/head.log", "w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                address = f"http://127.0.0.1:{dashboard}"
                wait_for(address, environment, process, Path(folder, "head.log"))
                yield Head(address, environment)
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(300)


def wait_for(address: str, environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the cluster runs a job of a client that has the token."""
    deadline = time.monotonic() + PATIENCE_S
    trial = [ray_command(), "job", "submit", "--address", address, "--", "true"]
    while subprocess.run(trial, env=environment, capture_output=True, check=False).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)


def test_submitted_training_succeeds_and_its_run_is_in_mlflow(head: Head, repository: Path, tmp_path: Path) -> None:
    import mlflow

    store_uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = ["--config", str(repository / "configs/demo.yaml"), *SMALL]
    bids, manifest, store = (str(tmp_path / name) for name in ("bids", "manifest.parquet", "prepared"))
    for command in (["phantom", bids], ["manifest", bids, manifest], ["prepare", manifest, store]):
        assert main([*command, *config]) == 0
    tracking = [f"tracking.uri={store_uri}", f"train.storage={tmp_path}/runs"]
    done = head.submit(repository, "python", "jobs/train_global.py", store, *config, *tracking)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout.lower()
    client = mlflow.MlflowClient(store_uri, registry_uri=store_uri)  # other tests have set others for the process
    version = client.get_model_version_by_alias("mmh-global", "champion")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "4"
    assert [point.step for point in client.get_metric_history(version.run_id, "loss")] == [1, 2, 3, 4]


def test_a_job_of_unusable_arguments_fails_and_says_why(head: Head, repository: Path) -> None:
    done = head.submit(repository, "python", "jobs/train_global.py", "configs", "train.stepz=1")
    assert done.returncode != 0
    assert "unknown key train.stepz" in done.stdout + done.stderr
