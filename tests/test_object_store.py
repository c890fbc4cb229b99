"""Bundles in an object store: a real S3 server (moto) on the loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmh_ray import object_store
from mmh_ray.config import TrackingConfig
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.imaging.volume import Volume, write_volume
from mmh_ray.object_store import fetch_bundle, is_remote, join_uri, open_folder
from mmh_ray.tracking import resolve_model
from tests.distributed.test_datasets import write_store
from tests.ray_head import TINY

FACTS = "config.json"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A running S3 server with a bucket, its address."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Another client of the server, with a fresh bucket; the environment tells where the server is, as an operator's does."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    found = pytest.importorskip("boto3").client("s3", endpoint_url=endpoint)
    found.create_bucket(Bucket="bucket")
    for entry in found.list_objects_v2(Bucket="bucket").get("Contents", []):
        found.delete_object(Bucket="bucket", Key=entry["Key"])
    return found


def put(client: Any, bundle: Path, prefix: str) -> None:
    """Upload a bundle's files."""
    for path in bundle.iterdir():
        client.put_object(Bucket="bucket", Key=f"{prefix}/{path.name}", Body=path.read_bytes())


@pytest.mark.fast
@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/runs", "s3://bucket/runs/first/bundle"),
        ("gs://bucket/", "gs://bucket/first/bundle"),
        ("s3://key:s3cr3t@bucket/runs?region=x&scheme=http", "s3://bucket/runs/first/bundle?region=x&scheme=http"),
        ("/data/runs/", "/data/runs/first/bundle"),
    ],
)
def test_what_lies_below_keeps_the_scheme_and_no_key(uri: str, expected: str) -> None:
    assert join_uri(uri, "first", "bundle") == expected


@pytest.mark.fast
def test_folders_names_and_registered_models_are_not_remote() -> None:
    assert is_remote("s3://bucket/x")
    for other in ("/data/x", "mmh-base", "models:/m/1", "runs:/0/x", "file:///data", "http://127.0.0.1/x", "C:\\x"):
        assert not is_remote(other)


@pytest.mark.fast
def test_a_store_of_no_known_kind_is_refused_without_its_keys() -> None:
    with pytest.raises(ConfigError, match=r"nosuch://bucket/x: .*expected a URI such as s3://") as caught:
        open_folder("nosuch://key:s3cr3t@bucket/x")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.slow
def test_a_bundle_in_a_bucket_is_the_same_model(client: Any, tiny_bundle: Path) -> None:
    from mmh_ray.models.bundle import load_bundle

    put(client, tiny_bundle, "runs/first/bundle")
    folder, cited = resolve_model("s3://key:s3cr3t@bucket/runs/first/bundle/", TrackingConfig())
    assert cited == "s3://bucket/runs/first/bundle/"
    assert load_bundle(folder).hash == load_bundle(tiny_bundle).hash


@pytest.mark.slow
def test_a_damaged_bundle_in_a_bucket_is_refused_as_any_other(client: Any, tiny_bundle: Path) -> None:
    from mmh_ray.models.bundle import load_bundle

    put(client, tiny_bundle, "bad")
    client.put_object(Bucket="bucket", Key="bad/denoiser.safetensors", Body=b"\x80\x04pickled")
    folder, _ = resolve_model("s3://bucket/bad", TrackingConfig())
    with pytest.raises(ModelError, match=r"denoiser\.safetensors"):
        load_bundle(folder)


@pytest.mark.slow
def test_what_is_no_bundle_is_refused_before_it_is_fetched(
    client: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=rf"s3://bucket/nothing: no {FACTS} there"):
        fetch_bundle("s3://bucket/nothing", FACTS)
    with pytest.raises(ModelError, match="s3://absent/nothing"):
        fetch_bundle("s3://absent/nothing", FACTS)
    put(client, tiny_bundle, "large")
    monkeypatch.setattr(object_store, "MOST_BYTES", 1000)
    with pytest.raises(ModelError, match="expected a model bundle of at most"):
        fetch_bundle("s3://bucket/large", FACTS)
    monkeypatch.setattr(object_store, "MOST_BYTES", 2**30)
    monkeypatch.setattr(object_store, "MOST_FILES", 2)
    with pytest.raises(ModelError, match="expected a model bundle of at most"):
        fetch_bundle("s3://bucket/large", FACTS)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["odd/../../escaped", "odd/x/../../../escaped"])
def test_an_object_whose_key_leads_out_of_the_folder_is_not_written(client: Any, tiny_bundle: Path, key: str) -> None:
    put(client, tiny_bundle, "odd")
    client.put_object(Bucket="bucket", Key=key, Body=b"x")
    with pytest.raises(ModelError, match="s3://bucket/odd"):
        fetch_bundle("s3://bucket/odd", FACTS)


@pytest.mark.slow
def test_a_small_file_is_no_upload_in_parts(client: Any) -> None:
    """One that a killed process leaves unfinished is paid for, and seen by nobody."""
    store, folder = open_folder("s3://bucket/runs")
    stream = store.open_output_stream(f"{folder}/run.json")
    stream.write(b"{}")
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket")
    stream.close()
    assert client.get_object(Bucket="bucket", Key="runs/run.json")["Body"].read() == b"{}"


ALL_IN_ONE = (
    "import json, sys; from mmh_ray.cli import main; sys.exit(max(main(line) for line in json.loads(sys.argv[1])))"
)
"""Runs command after command on one Ray, whose processes have the environment's credentials."""


@pytest.mark.ray
@pytest.mark.slow
def test_what_training_prints_is_a_model_to_harmonize_with(
    client: Any, repository: Path, plain_scan: Volume, tmp_path: Path
) -> None:
    bids, out = str(tmp_path / "bids"), str(tmp_path / "out")
    write_volume(plain_scan, Path(bids, "sub-01/anat/sub-01_T1w.nii.gz"))
    store = write_store(str(tmp_path / "prepared"), shape=(32, 40, 32))
    config = ["--config", str(repository / "configs/demo.yaml"), *TINY, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    bundle = "s3://bucket/runs/first/bundle"
    commands = [
        ["train-global", store, "train.storage=s3://bucket/runs", "train.run_name=first"],
        ["harmonize", bids, out, "--model", bundle],
    ]
    lines = json.dumps([[*command, *config] for command in commands])
    run = [sys.executable, "-c", ALL_IN_ONE, lines]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert f"bundle {bundle}\n" in done.stdout
    sidecar = next(Path(out).rglob("*_T1w.json"))
    assert json.loads(sidecar.read_text())["Model"]["URI"] == bundle
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket")
    assert "Downloading artifacts" not in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()] == []
