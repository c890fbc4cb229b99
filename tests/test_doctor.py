"""`mmh doctor`: its findings on this machine, and when something is missing."""

from __future__ import annotations

import http.server
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

import pytest

from mmh_ray.cli import main
from mmh_ray.config import TrackingConfig
from mmh_ray.doctor import Finding, as_json, examine, is_healthy, verdict

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _root_level_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


class _NoMLflow(http.server.BaseHTTPRequestHandler):
    """A server that answers every path with an error, or asks for a password."""

    status = 404

    def do_GET(self) -> None:
        self.send_error(self.status)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NoMLflow) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.fixture
def ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes Ray's check end at once, by an invalid address."""
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")


def finding(findings: Iterable[Finding], name: str) -> Finding:
    return next(found for found in findings if found.name == name)


def test_this_machine_is_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"]
    assert {"torch", "ray", "mlflow", "GPU", "shared memory", "model mmh-base", "brain weights"} <= set(told["checks"])
    assert told["checks"]["Ray start-up"] == {"state": "ok", "text": "started and stopped"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ray_is_refused")
def test_a_cluster_that_is_not_there_is_broken_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "RAY_ADDRESS=nowhere" in text
    assert text.rstrip().endswith("broken: Ray start-up")


@pytest.mark.usefixtures("ray_is_refused")
@pytest.mark.parametrize(("status", "state"), [(404, "broken"), (401, "note")])
def test_a_server_of_another_kind_is_no_tracking_server(
    server: str, status: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_NoMLflow, "status", status)
    assert finding(examine(TrackingConfig(uri=server)), "tracking").state == state


@pytest.mark.usefixtures("ray_is_refused")
def test_a_server_that_does_not_answer_is_broken_and_its_password_is_not_shown() -> None:
    found = finding(examine(TrackingConfig(uri="http://me:secret@127.0.0.1:9")), "tracking")
    assert found.state == "broken"
    assert "secret" not in found.text
    assert "127.0.0.1:9" in found.text


@pytest.mark.usefixtures("ray_is_refused")
def test_a_database_in_a_folder_that_is_not_there_is_broken(tmp_path: Path) -> None:
    found = finding(examine(TrackingConfig(uri=f"sqlite:///{tmp_path}/none/mlflow.db")), "tracking")
    assert found.state == "broken"


@pytest.mark.usefixtures("ray_is_refused")
def test_a_temporary_folder_that_is_not_there_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    found = finding(examine(TrackingConfig()), "temporary folder")
    assert found.state == "broken"
    assert "/nowhere" in found.text


@pytest.mark.usefixtures("ray_is_refused")
def test_damaged_weights_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(Path(str(resources.files("mmh_ray.imaging"))) / "weights", weights)
    with (weights / "brain.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    monkeypatch.setattr("mmh_ray.doctor.resources.files", lambda package: tmp_path)
    found = finding(examine(TrackingConfig()), "brain weights")
    assert found.state == "broken"
    assert "damaged" in found.text


def test_a_note_breaks_nothing() -> None:
    findings = [Finding("GPU", "note", "none"), Finding("torch", "ok", "2")]
    assert is_healthy(findings)
    lines = [finding.as_line() for finding in findings]
    assert lines == ["note   GPU               none", "ok     torch             2"]
    assert verdict(findings) == "all that is needed works"
    assert as_json(findings)["healthy"] is True
