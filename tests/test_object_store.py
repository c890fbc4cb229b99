"""Bundles in an object store: a real S3 server (moto) on the loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmh_ray import object_store
from mmh_ray.config import Config, GridConfig, ModelConfig, TrackingConfig
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.object_store import fetch_bundle, is_remote, join_uri, open_folder
from mmh_ray.tracking import resolve_model

FACTS = "config.json"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a tiny untrained model."""
    import torch

    from mmh_ray.models.bundle import save_bundle
    from mmh_ray.models.global_harmonizer import GlobalHarmonizer

    folder = tmp_path_factory.mktemp("model") / "bundle"
    model = ModelConfig(channels=(8, 16), slab=1, distances=(1, 2), patch=2)
    config = Config(grid=GridConfig(6.0, (32, 40, 32)), model=model)
    quantiles = torch.linspace(0, 1, 257).repeat(2, 2, 1)
    network = GlobalHarmonizer(config.model, config.train, quantiles)
    save_bundle(folder, network, config, quantiles=quantiles, data_hash="d" * 64, training={"steps": 0})
    return folder


def put(s3: Any, bundle: Path, prefix: str) -> None:
    """Upload a bundle's files."""
    for path in bundle.iterdir():
        s3.put_object(Bucket="bucket", Key=f"{prefix}/{path.name}", Body=path.read_bytes())


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
def test_a_bundle_in_a_bucket_is_the_same_model(s3: Any, bundle: Path) -> None:
    from mmh_ray.models.bundle import load_bundle

    put(s3, bundle, "runs/first/bundle")
    folder, cited = resolve_model("s3://key:s3cr3t@bucket/runs/first/bundle/", TrackingConfig())
    assert cited == "s3://bucket/runs/first/bundle/"
    assert load_bundle(folder).hash == load_bundle(bundle).hash


@pytest.mark.slow
def test_a_damaged_bundle_in_a_bucket_is_refused_as_any_other(s3: Any, bundle: Path) -> None:
    from mmh_ray.models.bundle import load_bundle

    put(s3, bundle, "bad")
    s3.put_object(Bucket="bucket", Key="bad/denoiser.safetensors", Body=b"\x80\x04pickled")
    folder, _ = resolve_model("s3://bucket/bad", TrackingConfig())
    with pytest.raises(ModelError, match=r"denoiser\.safetensors"):
        load_bundle(folder)


@pytest.mark.slow
def test_what_is_no_bundle_is_refused_before_it_is_fetched(
    s3: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=rf"s3://bucket/nothing: no {FACTS} there"):
        fetch_bundle("s3://bucket/nothing", FACTS)
    with pytest.raises(ModelError, match="s3://absent/nothing"):
        fetch_bundle("s3://absent/nothing", FACTS)
    put(s3, bundle, "large")
    monkeypatch.setattr(object_store, "MOST_BYTES", 1000)
    with pytest.raises(ModelError, match="expected a model bundle of at most"):
        fetch_bundle("s3://bucket/large", FACTS)
    monkeypatch.setattr(object_store, "MOST_BYTES", 2**30)
    monkeypatch.setattr(object_store, "MOST_FILES", 2)
    with pytest.raises(ModelError, match="expected a model bundle of at most"):
        fetch_bundle("s3://bucket/large", FACTS)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["odd/../../escaped", "odd/x/../../../escaped"])
def test_an_object_whose_key_leads_out_of_the_folder_is_not_written(s3: Any, bundle: Path, key: str) -> None:
    put(s3, bundle, "odd")
    s3.put_object(Bucket="bucket", Key=key, Body=b"x")
    with pytest.raises(ModelError, match="s3://bucket/odd"):
        fetch_bundle("s3://bucket/odd", FACTS)


@pytest.mark.slow
def test_a_small_file_is_no_upload_in_parts(s3: Any) -> None:
    """An unfinished multipart upload of a killed process would be invisible, but still be billed."""
    store, folder = open_folder("s3://bucket/runs")
    stream = store.open_output_stream(f"{folder}/run.json")
    stream.write(b"{}")
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="bucket")
    stream.close()
    assert s3.get_object(Bucket="bucket", Key="runs/run.json")["Body"].read() == b"{}"
