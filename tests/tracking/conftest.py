"""One MLflow server for all tests of tracking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mlflow_server import MlflowServer


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server, to be started."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(mlflow_server: MlflowServer) -> MlflowServer:
    """The server, running; the test may kill it."""
    mlflow_server.start()
    return mlflow_server
