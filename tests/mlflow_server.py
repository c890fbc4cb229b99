"""A real MLflow server on the loopback that a test can kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.http_server import wait_for_server

START_SECONDS = 300


class MlflowServer:
    """Server with a SQLite store in a folder; the port stays the same when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers; nothing happens if it runs."""
        if self.process is not None:
            return
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        command = [sys.executable, "-m", "mlflow", "server", *(part for option in options.items() for part in option)]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        log_file = self.folder / "log.txt"
        with open(log_file, "ab") as log:
            # A session of its own: its children are in its process group and end with it.
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for_server(f"{self.uri}/health", self.process, log_file, START_SECONDS)

    def kill(self) -> None:
        """End it at once, with its children."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)
            self.process = None
