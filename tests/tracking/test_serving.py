"""`mlflow models serve` in an environment where mmh_ray is installed only from the wheel stored with the model.

The server takes and returns bytes.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from mmh_ray import tracking
from mmh_ray.config import Config, TrackingConfig
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.imaging.volume import Volume, read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.simulation.anatomy import Anatomy
from tests.http_server import wait_for_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:mlflow(\..*)?"),
    pytest.mark.filterwarnings(r"ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

START_SECONDS = 300


@pytest.fixture(scope="module")
def model_folder(tiny_bundle: Path, tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registered model, downloaded."""
    folder = tmp_path_factory.mktemp("registry")
    config = replace(tiny_config, tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"))
    tracking.configure(config.tracking)
    run_id = tracking.start_run(config, "served", None, {})
    uri = tracking.register(run_id, tiny_bundle, config.tracking.model_name, config.tracking)
    tracking.finish(run_id)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder / "model")))


@pytest.fixture(scope="module")
def environment(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python environment with the packages of this one, but with mmh_ray only from the wheel of the model."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin/python"
    shown = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    # A path in a .pth file is searched for packages, but its own .pth files (an editable install) are not read.
    Path(shown.stdout.strip(), "packages.pth").write_text(sysconfig.get_paths()["purelib"])
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    requirements = (model_folder / "requirements.txt").read_text().split()
    (wheel,) = [requirement for requirement in requirements if requirement.endswith(".whl")]
    install = ["install", "--no-index", "--no-deps", "--ignore-installed", wheel]
    subprocess.run([*pip, *install], cwd=model_folder, env=_without_checkout(), check=True, timeout=300)
    (folder / "bin/uvicorn").write_text(f"#!{python}\nfrom uvicorn.main import main\nmain()\n")
    (folder / "bin/uvicorn").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def server(model_folder: Path, environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the model server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [environment / "bin/python", "-m", "mlflow", "models", "serve", "-m", model_folder]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--timeout", "300"]
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    folder = tmp_path_factory.mktemp("server")
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**_without_checkout(), "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for_server(f"http://127.0.0.1:{port}/ping", process, folder / "log.txt", START_SECONDS)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def _without_checkout() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def invoke(server: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The server's answer."""
    request = urllib.request.Request(
        server, json.dumps({"dataframe_records": rows}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read())["predictions"]


def test_the_environment_has_the_wheels_code(environment: Path) -> None:
    command = [environment / "bin/python", "-P", "-c", "import mmh_ray; print(mmh_ray.__file__)"]
    done = subprocess.run(command, env=_without_checkout(), capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(environment)


def test_a_scan_goes_in_as_bytes_and_comes_back_harmonized(
    server: str, tiny_bundle: Path, anatomy: Anatomy, clean: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "scan.nii.gz"
    write_volume(Volume((700 * clean * anatomy.brain).astype(np.float32), anatomy.affine), path)
    mask = tmp_path / "mask.nii.gz"
    write_volume(Volume(anatomy.brain.astype(np.float32), anatomy.affine), mask)
    scan_text, mask_text = (base64.b64encode(file.read_bytes()).decode() for file in (path, mask))
    rows = [
        {"sequence": "T1w", "scan": scan_text, "scan_mask": mask_text},
        {"sequence": "T1w", "scan": base64.b64encode(b"no image").decode(), "scan_mask": ""},
        {"sequence": "dwi", "scan": scan_text, "scan_mask": ""},
    ]
    done, damaged, unknown = invoke(server, rows)
    assert (done["status"], done["reason"], done["output"]) == ("done", "", None)
    made = tmp_path / "made.nii.gz"
    made.write_bytes(base64.b64decode(done["scan"]))
    expected = Harmonizer(load_bundle(tiny_bundle)).run(read_volume(path), "T1w", anatomy.brain).volume
    np.testing.assert_allclose(read_volume(made).data, expected.data, atol=1e-4 * np.ptp(expected.data))
    assert (damaged["status"], damaged["scan"]) == ("failed", None)
    assert damaged["reason"].startswith("scan.nii: ")
    assert "one of T1w, T2w" in unknown["reason"]


def test_a_served_model_reads_and_writes_no_files(server: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.nii.gz"
    shutil.copy(__file__, secret)
    output = tmp_path / "written.nii.gz"
    (row,) = invoke(server, [{"sequence": "T1w", "path": str(secret), "output": str(output)}])
    assert row["status"] == "failed"
    assert "this model does not read files" in row["reason"]
    assert not output.exists()


def test_invalid_base64_is_refused_with_a_reason(server: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        invoke(server, [{"sequence": "T1w", "scan": "abc"}])
    assert caught.value.code == 400
    assert "Failed to convert column scan" in caught.value.read().decode()
