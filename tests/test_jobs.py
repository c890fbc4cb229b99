"""Submits jobs to a running cluster, as users do: `ray job submit --working-dir . -- python jobs/train_global.py`."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.ledger import read_ledger
from tests.ray_head import TINY, Head, ray_command, running_head
from tests.s3_files import SECRET, download, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic)(\..*)?"),
]


@pytest.fixture(scope="module")
def head(s3_endpoint: str) -> Iterator[Head]:
    """A running cluster whose processes have the credentials of an object store."""
    with running_head(environment(s3_endpoint)) as found:
        yield found


def test_a_job_of_unusable_arguments_fails_and_says_why(head: Head, repository: Path) -> None:
    done = head.submit(repository, "python", "jobs/train_global.py", "configs", "train.stepz=1")
    assert done.returncode != 0
    assert "unknown key train.stepz" in done.stdout + done.stderr


RAYS_OWN = ("TrainController.run", "MapWorker(MapBatches(_Loader)).submit")
"""Tasks of Ray's own actors."""

ALL_IN_ONE = """
import json, runpy, sys
from pathlib import Path
import boto3
from mmh_ray.cli import main
from tests.s3_files import upload
phantom, *jobs = json.loads(sys.argv[1])
assert main(phantom) == 0
upload(boto3.client("s3"), Path(phantom[1]), "bids")
for name, *arguments in jobs:
    sys.argv = [name, *arguments]
    try:
        runpy.run_path(f"jobs/{name}.py", run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
"""
"""A phantom archive in the store, then job file after job file, in one process: it joins the cluster once."""


def test_a_submitted_pipeline_works_in_a_store_and_an_operator_sees_its_names_figures_and_no_failure(
    head: Head, s3: Any, repository: Path, tmp_path: Path
) -> None:
    """From the archive to the derivatives: by the model URI that training prints, and again by the registry's."""
    import mlflow

    store_uri = f"sqlite:///{tmp_path}/mlflow.db"
    bids = str(tmp_path / "bids")
    manifest, store, out = (f"s3://bucket/{name}" for name in ("manifest.parquet", "prepared", "out"))
    bundle = "s3://bucket/runs/first/bundle"
    config = ["--config", str(repository / "configs/demo.yaml"), *TINY, f"tracking.uri={store_uri}"]
    harmonize = ["harmonize", "s3://bucket/bids", out, "--sequence", "T1w"]
    commands = [
        ["phantom", bids],
        ["build_manifest", "s3://bucket/bids", manifest],
        ["prepare", manifest, store],
        ["train_global", store, "train.storage=s3://bucket/runs", "train.run_name=first"],
        [*harmonize, "--model", bundle],
        [*harmonize, "--model", "models:/mmh-global@champion"],
    ]
    lines = json.dumps([[*command, *config] for command in commands])
    with _watching(head, "ray_mmh_queue_length{") as is_queue_seen:
        done = head.submit(repository, "python", "-c", ALL_IN_ONE, lines)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "succeeded" in done.stdout.lower()
    assert is_queue_seen.is_set()  # told by the driver, and gone with it
    assert f"bundle {bundle}\n" in done.stdout
    assert "Downloading artifacts" not in printed

    images = {path.name.removesuffix(".nii.gz") for path in Path(bids).glob("sub-*/**/*.nii.gz")}
    harmonized = {image for image in images if image.endswith("_T1w")}
    _check_store(s3, bundle, len(harmonized), tmp_path)
    assert f"up to date already: {len(harmonized)}" in done.stdout
    assert SECRET not in printed
    assert [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []

    tasks = _listed(head, "tasks", "--limit", "1000")
    failed = [(task["name"], task["error_type"]) for task in tasks if task["state"] == "FAILED"]
    # Ray Train and Ray Data drop their actors as soon as these are done; their last reports may be lost.
    assert [task for task in failed if task[0] not in RAYS_OWN or task[1] != "WORKER_DIED"] == []
    names = {task["name"] for task in tasks}
    assert {f"harmonize {image}" for image in harmonized} <= names
    assert any(name.startswith("prepare sub-") for name in names)
    actors = {actor["name"] for actor in _listed(head, "actors")}
    assert any(re.fullmatch(r"harmonize [0-9a-f]{4} 1", name) for name in actors)

    with urllib.request.urlopen(head.metrics) as answer:
        exported = answer.read().decode()
    for stage, status, expected in (
        ("prepare", "ok", images),
        ("harmonize", "done", harmonized),
        ("harmonize", "skipped", harmonized),
    ):
        labels = f'.*stage="{stage}",.*status="{status}".*'
        counted = re.findall(rf"^ray_mmh_images_total{{{labels}}} (\S+)$", exported, re.MULTILINE)
        assert sum(map(float, counted)) == len(expected), (stage, status, counted)
        assert re.search(rf'^ray_mmh_image_seconds_sum{{.*stage="{stage}"', exported, re.MULTILINE)
        assert re.search(rf'^ray_mmh_data_wait_seconds_total{{.*stage="{stage}"', exported, re.MULTILINE)

    client = mlflow.MlflowClient(store_uri, registry_uri=store_uri)  # other tests have set others for the process
    run = client.get_run(client.get_model_version_by_alias("mmh-global", "champion").run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "4"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]
    submission_id = run.data.tags["mmh.ray_submission_id"]
    (submitted,) = [job for job in _listed(head, "jobs") if job["submission_id"] == submission_id]
    assert submitted["status"] == "SUCCEEDED"
    last_run = client.get_run(
        submitted["metadata"]["mlflow_run_id"]
    )  # that of the archive, which came after the training
    assert last_run.data.tags["mmh.ray_submission_id"] == submission_id


def _check_store(s3: Any, bundle: str, images: int, folder: Path) -> None:
    """Derivatives of the first run, which the second left as they were, a manifest, and no unfinished upload."""
    fetched = download(s3, "", folder / "fetched")
    sidecars = list((fetched / "out").rglob("*_T1w.json"))
    assert len(sidecars) == images
    assert {json.loads(path.read_text())["Model"]["URI"] for path in sidecars} == {bundle}
    assert all(path.with_suffix(".nii.gz").is_file() for path in sidecars)
    rows = read_ledger(fetched / "out/ledger.parquet")
    assert [row["status"] for row in rows] == ["skipped"] * images
    assert (fetched / "manifest.parquet").is_file()
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="bucket")


@contextlib.contextmanager
def _watching(head: Head, text: str) -> Iterator[threading.Event]:
    """An event that is set when the exported metrics contain a text, while the block runs."""
    is_seen = threading.Event()
    is_over = threading.Event()

    def watch() -> None:
        while not is_seen.is_set() and not is_over.wait(0.5):
            with contextlib.suppress(OSError), urllib.request.urlopen(head.metrics, timeout=10) as answer:
                if text in answer.read().decode():
                    is_seen.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield is_seen
    is_over.set()
    watcher.join()


def _listed(head: Head, what: str, *options: str) -> list[dict]:
    """Output of `ray list`."""
    command = [ray_command(), "list", what, "--address", head.address, "--format", "json", "--detail", *options]
    done = subprocess.run(command, env=head.environment, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout)


def test_an_upload_of_the_repository_leaves_checkpoints_behind(head: Head, repository: Path, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_bytes((repository / ".gitignore").read_bytes())
    for name in ("runs", "demo", "jobs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    done = head.submit(tmp_path, "find", ".", "-name", "file")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\./\w+/file$", done.stdout, re.MULTILINE) == ["./jobs/file"]
