"""Recorded places of untrusted models: only the model's own folder and the caller's store are ever used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmh_ray.config import Config, TrackingConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.target.adapter import SiteStyle
from mmh_ray.models.target.bundle import save_target
from mmh_ray.models.target.fine_tuner import TunedAdapter
from mmh_ray.tracking import (
    resolve_model,
    resolve_recorded,
    resolve_recorded_target,
    resolve_target,
    target_model_name,
)
from mmh_ray.tracking.registry import GLOBAL, bundle_inside, download

pytestmark = pytest.mark.fast

STYLE = SiteStyle(np.linspace(0, 1, 64), np.linspace(0, 1, 64) ** 2, np.linspace(0, 1, 257), 0.02)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Artifacts of a model with its bundle, and another bundle outside of them."""
    for place in ("model/artifacts/bundle", "secret", "model/own"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / GLOBAL).touch()
    return tmp_path / "model"


def describe(artifacts: Path, path: object) -> None:
    flavor = {"artifacts": {"bundle": {"path": path, "uri": "/anywhere"}}, "loader_module": "mlflow.pyfunc.model"}
    description = {"flavors": {"python_function": flavor}, "utc_time_created": "2026-01-01 00:00:00.000000"}
    (artifacts / "MLmodel").write_text(yaml.safe_dump(description))


def test_the_bundle_of_a_model_is_found(artifacts: Path) -> None:
    describe(artifacts, "artifacts/bundle")
    assert bundle_inside(artifacts, "models:/m/1", GLOBAL) == artifacts / "artifacts/bundle"
    (artifacts / GLOBAL).touch()
    assert bundle_inside(artifacts, "models:/m/1", GLOBAL) == artifacts


@pytest.mark.parametrize("path", ["../secret", "artifacts/../../secret", "/secret", "away"])
def test_a_path_that_leads_out_of_the_artifacts_is_refused(artifacts: Path, path: str) -> None:
    (artifacts / "away").symlink_to("../secret")
    describe(artifacts, str(artifacts.parent / "secret") if path == "/secret" else path)
    with pytest.raises(ModelError, match=r"outside its artifacts; expected a bundle among its artifacts"):
        bundle_inside(artifacts, "models:/m/1", GLOBAL)


@pytest.mark.parametrize("path", ["nowhere", "", 5, None, ["artifacts/bundle"], {"a": "b"}])
def test_a_path_that_is_none_is_refused(artifacts: Path, path: object) -> None:
    describe(artifacts, path)
    with pytest.raises(ModelError, match="has no such bundle"):
        bundle_inside(artifacts, "models:/m/1", GLOBAL)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "flavors",
        "flavors: [python_function]",
        "flavors: {python_function: null}",
        "flavors: {python_function: {artifacts: [bundle]}}",
        "flavors: {python_function: {artifacts: {bundle: here}}}",
        "a: &a [*a]",
        "flavors: !!python/object/apply:os.system ['true']",
        "[" * 10_000,
        "\x00",
        "# " + "x" * 200_000,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_any_description_is_a_bundle_or_a_model_error(artifacts: Path, text: str) -> None:
    (artifacts / "MLmodel").write_text(text)
    with pytest.raises(ModelError):
        bundle_inside(artifacts, "models:/m/1", GLOBAL)


@pytest.mark.parametrize("kind", ["pipe", "zeros", "folder", "dangling"])
def test_a_description_that_is_no_file_is_refused_at_once(artifacts: Path, kind: str) -> None:
    path = artifacts / "MLmodel"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "zeros" else "nowhere")
    with pytest.raises(ModelError, match="expected the description of an MLflow model"):
        bundle_inside(artifacts, "models:/m/1", GLOBAL)


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:1/model",
        "https://some.body/model",
        "s3://bucket/model",
        "runs:/0123/model",
        "file:///etc",
        "/etc",
        "..",
        "",
        "models:/a/b/c",
        "models:/../../etc",
        "mlflow-artifacts:/x",
        "hf-hub:some/body",
    ],
)
def test_the_recorded_base_of_a_target_is_searched_only_in_the_callers_store(uri: str, tmp_path: Path) -> None:
    store = TrackingConfig(uri=f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(ModelError, match=r"recorded in a target; expected a registered model.*model_config"):
        resolve_recorded(uri, store)
    with pytest.raises(ModelError, match="there is no store"):
        resolve_recorded("models:/mmh-global/3", store)


def test_a_base_given_by_the_caller_is_used(tmp_path: Path) -> None:
    (tmp_path / GLOBAL).touch()
    folder, uri = resolve_recorded("http://127.0.0.1:1/model", TrackingConfig(), str(tmp_path))
    assert (folder, uri) == (tmp_path, tmp_path.as_uri())


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/model", "s3://bucket/x", "runs:/0123/model", "../target", "None"])
def test_a_target_recorded_in_a_sidecar_is_not_downloaded(uri: str) -> None:
    with pytest.raises(ModelError, match="recorded in a sidecar; expected a registered model or a folder"):
        resolve_recorded_target(uri, TrackingConfig())


@pytest.mark.parametrize(
    ("site", "asked"), [("site 1", "site-1"), ("site_1", "site 1"), ("大阪", "東京"), ("alder", "Alder")]
)
def test_a_target_must_be_of_the_requested_site(tmp_path: Path, site: str, asked: str) -> None:
    curve_alone, base = TunedAdapter({}, {"loss": 1.0}, {"loss": 1.0}, 0), {"hash": "b" * 64, "uri": ""}
    for name in (site, asked):
        place = tmp_path / "adapters" / target_model_name(name).removeprefix("mmh-target-")
        save_target(place, site, base, {"T1w": STYLE}, {"T1w": curve_alone}, Config(), {"T1w": {"images": []}})
    found, _ = resolve_target(site, tmp_path, TrackingConfig())
    assert found.parent == tmp_path / "adapters"
    with pytest.raises(ModelError, match=rf"the target of site '{site}'; expected a target of site '{asked}'"):
        resolve_target(asked, tmp_path, TrackingConfig())


@pytest.mark.parametrize("site", ["x" * 300, "x" * 5000])
def test_a_site_name_that_is_too_long_for_a_path_is_searched_in_the_store(tmp_path: Path, site: str) -> None:
    with pytest.raises(ModelError):
        resolve_target(site, tmp_path, TrackingConfig(uri=f"sqlite:///{tmp_path}/none.db"))


def test_a_store_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody_listens = "http://127.0.0.1:9"
    with pytest.raises(ModelError) as caught:
        resolve_model("models:/mmh-global@champion", TrackingConfig(uri=nobody_listens))
    assert caught.value.expected == "an MLflow store that answers"
    assert nobody_listens in caught.value.received


def test_an_error_of_a_download_shows_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    def fail(**_: str) -> str:
        raise OSError("no answer\nfrom https://me:secret@store/artifacts")

    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://me:secret@store")
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fail)
    with pytest.raises(ModelError) as caught:
        download("models:/m/1", "a bundle", artifact_uri="models:/m/1")
    assert caught.value.received == "models:/m/1 at https://store: no answer from https://store/artifacts"
