"""Buffered metrics: nothing is lost while a real server is down, a worker dies or the disk is full."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import mlflow
import pyarrow.fs
import pytest

from mmh_ray import tracking
from mmh_ray.config import Config, TrackingConfig
from mmh_ray.tracking import MetricsOutbox, outbox, sending_metrics
from tests.mlflow_server import MlflowServer

of_mlflow = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:mlflow(\..*)?"),
]
PATIENCE_S = 60


@pytest.fixture
def box(tmp_path: Path) -> MetricsOutbox:
    """An outbox in an empty folder."""
    return MetricsOutbox(pyarrow.fs.LocalFileSystem(), str(tmp_path / "metrics"))


@pytest.fixture
def run_id(server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A new run on the running server; MLflow gives up quickly if it is down."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(outbox, "READ_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "SEND_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    config = Config(tracking=TrackingConfig(uri=server.uri))
    tracking.configure(config.tracking)
    return tracking.start_run(config, "outbox", None, {})


def put(box: MetricsOutbox, *steps: int) -> None:
    """Write a file with the rows of some steps."""
    for step in steps:
        box.add(step, {"loss": 1 / (step + 1), "mse": 0.5})
    box.write()


def losses(run_id: str) -> list[tuple[int, float]]:
    """Steps and losses in MLflow."""
    return sorted((entry.step, entry.value) for entry in mlflow.MlflowClient().get_metric_history(run_id, "loss"))


def expected(*steps: int) -> list[tuple[int, float]]:
    """The expected result of :func:`losses`."""
    return [(step, 1 / (step + 1)) for step in steps]


def wait_until(condition) -> None:
    """Wait for a condition, with a time limit."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.fast
def test_rows_come_back_as_they_were_and_in_their_order(box: MetricsOutbox) -> None:
    assert box.names() == []
    put(box, 1, 2)
    box.add(3, {"loss": float("nan"), "mse": 1e-300})
    box.write()
    first, second = box.names()
    assert [(row.step, row.values["loss"]) for row in box.read(first)] == expected(1, 2)
    (row,) = box.read(second)
    assert row.values["loss"] != row.values["loss"]
    assert row.values["mse"] == 1e-300
    box.remove(first)
    box.remove(first)
    assert box.names() == [second]


@pytest.mark.fast
def test_rows_are_written_together_after_some_seconds(box: MetricsOutbox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.add(1, {"loss": 1.0})
    box.add(2, {"loss": 1.0})
    assert box.names() == []
    monkeypatch.setattr(outbox, "WRITE_SECONDS", 0.0)
    box.add(3, {"loss": 1.0})
    (name,) = box.names()
    assert [row.step for row in box.read(name)] == [1, 2, 3]


@pytest.mark.fast
def test_a_folder_that_cannot_be_written_keeps_the_rows_and_raises_nothing(
    box: MetricsOutbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "metrics"
    in_the_way.write_text("a file where the folder should be")
    put(box, 1, 2)
    assert "metrics of 2 steps are kept" in caplog.text
    in_the_way.unlink()
    put(box, 3)
    (name,) = box.names()
    assert [row.step for row in box.read(name)] == [1, 2, 3]


class TestWithMlflow:
    """Against a real server."""

    pytestmark = of_mlflow

    def test_what_is_acknowledged_is_there_and_its_files_are_gone(self, box: MetricsOutbox, run_id: str) -> None:
        shown: list[int] = []
        put(box, 0)  # left by an earlier start
        with sending_metrics(box, run_id, lambda row: shown.append(row.step)):
            put(box, 1, 2)
            wait_until(lambda: losses(run_id) == expected(0, 1, 2))
            put(box, 3)
        assert losses(run_id) == expected(0, 1, 2, 3)
        assert box.names() == []
        assert shown == [0, 1, 2, 3]

    def test_an_outage_in_the_middle_loses_nothing(
        self, box: MetricsOutbox, run_id: str, server: MlflowServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with sending_metrics(box, run_id):
            put(box, 0)
            wait_until(lambda: losses(run_id) == expected(0))
            server.kill()
            put(box, 1)
            wait_until(lambda: "metrics are kept in" in caplog.text)
            put(box, 2, 3)
            server.start()
            put(box, 4)
        assert losses(run_id) == expected(0, 1, 2, 3, 4)
        assert box.names() == []
        assert caplog.text.count("metrics are kept in") == 1

    @pytest.mark.parametrize("fails", [False, True])
    def test_what_could_not_be_sent_is_said_and_sent_at_the_next_start(
        self, box: MetricsOutbox, run_id: str, server: MlflowServer, caplog: pytest.LogCaptureFixture, fails: bool
    ) -> None:
        server.kill()
        try:
            with sending_metrics(box, run_id):
                put(box, 0, 1)
                put(box, 7)
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        (said,) = [text for text in warnings if "are not in MLflow" in text]
        assert "metrics of 3 steps (0 to 7) are not in MLflow" in said
        assert f"kept in {box.folder} and sent when this training is started again" in said
        assert len(box.names()) == 2

        server.start()
        with sending_metrics(box, run_id):
            pass
        assert losses(run_id) == expected(0, 1, 7)
        assert box.names() == []

    def test_what_an_earlier_training_left_is_sent_to_its_own_run(self, run_id: str, tmp_path: Path) -> None:
        storage, folder = pyarrow.fs.LocalFileSystem(), str(tmp_path / "left")
        tracking.send_left(storage, folder)  # nothing there
        put(MetricsOutbox(storage, f"{folder}/{run_id}"), 1, 2)
        tracking.send_left(storage, folder)
        assert losses(run_id) == expected(1, 2)
        assert list((tmp_path / "left").iterdir()) == []
