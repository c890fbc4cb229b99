"""MLflow runs of harmonized archives: complete on a real server, and harmless without one."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest

from mmh_ray.bids.derivatives import sidecar_path
from mmh_ray.bids.ledger import LEDGER_SCHEMA, read_ledger
from mmh_ray.bids.status import RunRecord, utc_now
from mmh_ray.config import Config, TrackingConfig
from mmh_ray.quality.run_report import image_record
from mmh_ray.tracking import archive_run
from mmh_ray.tracking.archive_run import ArchiveRun, Outcome, archive_metrics, rows_since
from tests.mlflow_server import MlflowServer

of_mlflow = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:mlflow(\..*)?"),
]
STARTED = "2026-01-02T03:04:05+00:00"
BEFORE = "2026-01-01T00:00:00+00:00"
PATIENCE_S = 60


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def record() -> RunRecord:
    """Record of a run over three images in the source s3://bucket/study."""
    source = "s3://key:secret@bucket/study"
    return RunRecord(source, "models:/mmh-global/3", "a" * 64, "0.1", 3, STARTED)


def ledger_row(image_id: str, **columns: Any) -> dict[str, Any]:
    fixed = {
        "image_id": image_id,
        "sequence": "T1w",
        "source": f"/bids/{image_id}.nii.gz",
        "finished": utc_now().isoformat(),
    }
    return dict.fromkeys(LEDGER_SCHEMA.names) | fixed | columns


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """The ledger of a folder: two harmonized with sidecars, one refused, and one of an earlier run."""
    made = []
    for number, preservation in enumerate((0.8, 1.0)):
        output = f"sub-{number}_desc-harmonized_T1w.nii.gz"
        sidecar_path(tmp_path / output).write_text(json.dumps({"QC": {"preservation": preservation}}))
        flags = ["brain, ml: 900 is below 950", "not checked: without"] if number else ["brain, ml: 800 is below 950"]
        made.append(ledger_row(f"sub-{number}_T1w", status="done", output=output, seconds=2.0 + number, flags=flags))
    refused = ledger_row("sub-2_T1w", status="refused", reason="no head", flags=[])
    earlier = ledger_row("sub-3_T1w", status="done", finished=BEFORE)
    return [*made, refused, earlier]


@pytest.mark.fast
def test_figures_are_those_of_the_run(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    images = [image_record(tmp_path, row) for row in rows_since(STARTED, rows)]
    values = archive_metrics(images)
    counts = {name: value for name, value in values.items() if name.startswith(("images.", "flags."))}
    expected = {"images.done": 2, "images.skipped": 0, "images.failed": 0, "images.refused": 1, "images.flagged": 2}
    assert counts == expected | {"flags.brain ml": 2, "flags.not checked": 1}
    assert [values[f"qc.T1w.preservation.{name}"] for name in ("p05", "p50", "p95")] == pytest.approx([0.81, 0.9, 0.99])
    assert values["image_seconds.T1w.p50"] == 2.5


@pytest.mark.fast
def test_without_a_store_mlflow_is_not_used(record: RunRecord) -> None:
    assert ArchiveRun.start(Config(), record, {}, lambda run_id: None) is None


class TestWithMlflow:
    """Against a real server, and against none."""

    pytestmark = of_mlflow

    def test_the_run_has_counts_figures_files_and_facts(
        self, server: MlflowServer, record: RunRecord, rows: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        config = Config(tracking=TrackingConfig(uri=server.uri, experiment="whole"))
        noted: list[str] = []
        run = ArchiveRun.start(config, record, {"ray_job_id": "01000000"}, noted.append)
        assert run is not None
        (tmp_path / "report.html").write_text("<html></html>")
        finished = replace(record, finished="2026-01-02T03:05:05+00:00")
        run.finish(Outcome(finished, rows, str(tmp_path)))

        found = the_run(server, "whole-harmonize")
        assert noted == [found.info.run_id]
        assert (found.info.run_name, found.info.status) == ("study", "FINISHED")
        assert found.data.metrics["images.done"] == 2
        assert found.data.metrics["seconds"] == 60
        assert found.data.metrics["qc.T1w.preservation.p50"] == pytest.approx(0.9)
        tags = found.data.tags
        assert (tags["mmh.model"], tags["mmh.model_hash"]) == (record.model, record.model_hash)
        assert (tags["mmh.source"], tags["mmh.ray_job_id"]) == ("s3://bucket/study", "01000000")
        assert tags["mlflow.note.content"].startswith("2 of 3 images harmonized; 1 refused")
        assert "secret" not in str(found.to_dictionary())
        (data,) = found.inputs.dataset_inputs
        assert (data.dataset.name, len(data.dataset.digest)) == ("study", 36)
        folder = Path(mlflow.artifacts.download_artifacts(run_id=found.info.run_id))
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {
            "ledger.parquet",
            "logs/run.json",
            "report.html",
        }
        assert "secret" not in (folder / "logs/run.json").read_text()
        assert len(read_ledger(folder / "ledger.parquet")) == 4

    def test_a_run_that_failed_is_marked(
        self, server: MlflowServer, record: RunRecord, rows: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        config = Config(tracking=TrackingConfig(uri=server.uri, experiment="broken"))
        run = ArchiveRun.start(config, record, {}, lambda run_id: None)
        assert run is not None
        run.finish(Outcome(replace(record, failure="full disk"), rows, str(tmp_path)))
        assert the_run(server, "broken-harmonize").info.status == "FAILED"

    def test_no_server_costs_a_bounded_time_and_is_said(
        self,
        record: RunRecord,
        rows: list[dict[str, Any]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(archive_run, "LAST_SECONDS", 2.0)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # about 14 s in all
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            uri = f"http://user:secret@127.0.0.1:{deaf.getsockname()[1]}"
            run = ArchiveRun.start(Config(tracking=TrackingConfig(uri=uri)), record, {}, lambda run_id: None)
            assert run is not None
            started = time.monotonic()
            run.finish(Outcome(record, rows, str(tmp_path)))
        assert time.monotonic() - started < 10
        assert "secret" not in caplog.text
        (said,) = [entry.getMessage() for entry in caplog.records if "lacks this run" in entry.getMessage()]
        assert f"{tmp_path} has all of it" in said

    def test_a_server_that_comes_up_late_gets_the_run(
        self,
        server: MlflowServer,
        record: RunRecord,
        rows: list[dict[str, Any]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(archive_run, "RETRY_SECONDS", 0.2)
        server.kill()
        config = Config(tracking=TrackingConfig(uri=server.uri, experiment="late"))
        run = ArchiveRun.start(config, record, {}, lambda run_id: None)
        assert run is not None
        deadline = time.monotonic() + PATIENCE_S
        while "the images do not wait" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        server.start()
        run.finish(Outcome(record, rows, str(tmp_path)))
        assert the_run(server, "late-harmonize").data.metrics["images.done"] == 2


def the_run(server: MlflowServer, experiment: str) -> Any:
    """The only run of an experiment."""
    client = mlflow.MlflowClient(server.uri)
    (found,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return found
