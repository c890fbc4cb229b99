"""Tracking against real stores: a SQLite file and an MLflow server on the loopback."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import ANY

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from mmh_ray import tracking
from mmh_ray.config import Config, GridConfig, ModelConfig, TargetConfig, TrackingConfig, flatten
from mmh_ray.errors import ModelError
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.imaging.volume import Volume, read_volume, write_volume
from mmh_ray.models.bundle import bundle_hash, load_bundle, save_bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.target.adapter import SiteStyle, attach, state_of
from mmh_ray.models.target.bundle import load_target, save_target
from mmh_ray.models.target.fine_tuner import TunedAdapter
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical
from mmh_ray.tracking.runs import METRICS_PER_REQUEST, shorten
from tests.mlflow_server import MlflowServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:mlflow(\..*)?"),
    pytest.mark.filterwarnings(r"ignore:.*Any type hint is inferred as AnyType:UserWarning"),  # of MLflow's own types
]

DIGEST = "0123456789abcdef" * 4


@dataclass
class Trained:
    """A finished run with a registered model."""

    config: Config
    bundle: Path
    run_id: str
    model_uri: str


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configured store, and a current folder in which nothing may be written."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of either kind."""
    if request.param == "server":
        server: MlflowServer = request.getfixturevalue("mlflow_server")
        server.start()
        return server.uri
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/tracking.db"


@pytest.fixture(scope="module")
def trained(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run from start to registration."""
    config = Config(
        model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2)),
        grid=GridConfig(spacing_mm=8.0, shape=(16, 16, 16)),
        tracking=TrackingConfig(uri=uri, experiment="tests"),
    )
    folder = tmp_path_factory.mktemp("trained")
    quantiles = torch.linspace(0, 1, 257).repeat(2, 2, 1)
    model = GlobalHarmonizer(config.model, config.train, quantiles)
    save_bundle(folder / "global", model, config, quantiles=quantiles, data_hash="abc", training={"steps": 3})
    (folder / "sample.png").write_bytes(b"\x89PNG")
    tracking.configure(config.tracking)
    run_id = tracking.start_run(config, "trial", None, {"data_hash": "abc", "volumes": 7})
    data = tracking.RunInput("training", DIGEST, "s3://key:secret@bucket/study/prepared?endpoint_override=host")
    tracking.log_input(run_id, data)
    tracking.log_input(run_id, data)
    for step in range(3):
        tracking.log_metrics(run_id, [tracking.MetricRow.of_now(step, {"loss": 1 / (step + 1), "mse": 0.5})])
    tracking.log_file(run_id, folder / "sample.png", "figures")
    model_uri = tracking.register(run_id, folder / "global", config.tracking.model_name, config.tracking)
    status = mlflow.MlflowClient(uri).get_run(run_id).info.status
    tracking.finish(run_id)
    assert status == "RUNNING", "registration must not end the run"
    return Trained(config, folder / "global", run_id, model_uri)


def test_a_run_holds_settings_facts_metrics_and_figures(trained: Trained) -> None:
    client = mlflow.MlflowClient(trained.config.tracking.uri)
    run = client.get_run(trained.run_id)
    assert run.data.params.keys() - {"files"} == flatten(trained.config).keys()  # MLflow adds a model's own settings
    assert run.data.params["grid.spacing_mm"] == "8.0"
    assert run.data.params["model.channels"] == "[8, 16]"
    assert run.data.tags["mmh.data_hash"] == "abc"
    assert run.data.tags["mmh.volumes"] == "7"
    assert "mmh.code_version" in run.data.tags
    history = client.get_metric_history(trained.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [item.path for item in client.list_artifacts(trained.run_id, "figures")] == ["figures/sample.png"]
    assert (run.info.run_name, run.info.status) == ("trial", "FINISHED")


def test_a_run_names_its_data_without_credentials(trained: Trained) -> None:
    run = mlflow.MlflowClient(trained.config.tracking.uri).get_run(trained.run_id)
    (found,) = run.inputs.dataset_inputs
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]
    assert (found.dataset.name, found.dataset.digest) == ("prepared", DIGEST[:36])
    assert json.loads(found.dataset.profile) == {"sha256": DIGEST}
    assert mlflow.data.get_source(found.dataset).uri == "s3://bucket/study/prepared"
    assert "secret" not in str(run.to_dictionary())


@pytest.mark.parametrize(
    ("place", "name", "source"),
    [("/data/a study/", "a study", {"uri": "/data/a study/"}), (None, "simulation", {"tags": ANY})],
)
def test_other_data_are_named_too(trained: Trained, place: str | None, name: str, source: dict) -> None:
    tracking.configure(trained.config.tracking)
    run_id = tracking.start_run(trained.config, "inputs", None, {})
    tracking.log_input(run_id, tracking.RunInput("evaluation", DIGEST, place))
    tracking.finish(run_id)
    (found,) = mlflow.MlflowClient().get_run(run_id).inputs.dataset_inputs
    assert (found.dataset.name, mlflow.data.get_source(found.dataset).to_dict()) == (name, source)


def test_a_model_and_its_version_are_described(trained: Trained) -> None:
    client = mlflow.MlflowClient(trained.config.tracking.uri)
    version = client.get_model_version("mmh-global", "1")
    assert version.description == (trained.bundle / "MODEL_CARD.md").read_text()
    model = client.get_registered_model("mmh-global")
    assert "mmh harmonize BIDS OUT --model models:/mmh-global@champion" in model.description


def test_the_requirements_of_a_model_are_the_wheel_stored_with_it(trained: Trained) -> None:
    tracking.configure(trained.config.tracking)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=trained.model_uri))
    (requirement,) = [
        line for line in (folder / "requirements.txt").read_text().split() if not line.startswith("mlflow==")
    ]
    with zipfile.ZipFile(folder / requirement) as wheel:
        assert "mmh_ray/tracking/pyfunc_model.py" in wheel.namelist()


def test_nothing_is_written_to_the_current_folder(trained: Trained, tmp_path: Path) -> None:
    tracking.configure(trained.config.tracking)
    tracking.resolve_model("models:/mmh-global@champion", trained.config.tracking)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_keeps_its_id_and_tells_what_changed(trained: Trained) -> None:
    tracking.configure(trained.config.tracking)
    run_id = tracking.start_run(trained.config, "resumed", None, {})
    longer = replace(trained.config, train=replace(trained.config.train, steps=99))
    assert tracking.start_run(longer, "resumed", run_id, {"data_hash": "def"}) == run_id
    run = mlflow.MlflowClient().get_run(run_id)
    assert run.info.status == "RUNNING"
    assert {key: value for key, value in run.data.tags.items() if key.startswith("resumed.")} == {
        "resumed.train.steps": "99"
    }
    assert run.data.tags["mmh.data_hash"] == "def"
    tracking.finish(run_id, "FAILED")
    assert mlflow.MlflowClient().get_run(run_id).info.status == "FAILED"


def test_a_run_that_the_store_lost_is_replaced_by_a_new_one(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    tracking.configure(trained.config.tracking)
    lost = "0" * 32
    run_id = tracking.start_run(trained.config, "again", lost, {})
    assert run_id != lost
    assert f"MLflow run {lost} is not in" in caplog.text
    tracking.finish(run_id)


def test_more_metrics_than_a_request_takes_all_arrive(trained: Trained) -> None:
    tracking.configure(trained.config.tracking)
    run_id = tracking.start_run(trained.config, "many", None, {})
    count = METRICS_PER_REQUEST + 1
    tracking.log_metrics(run_id, [tracking.MetricRow.of_now(step, {"loss": 1.0}) for step in range(count)])
    assert len(mlflow.MlflowClient().get_metric_history(run_id, "loss")) == count
    tracking.finish(run_id)


def test_a_row_that_is_sent_twice_is_stored_once(trained: Trained) -> None:
    tracking.configure(trained.config.tracking)
    run_id = tracking.start_run(trained.config, "twice", None, {})
    rows = [tracking.MetricRow.of_now(step, {"loss": 1.0 / (step + 1)}) for step in range(3)]
    tracking.log_metrics(run_id, rows[:2])
    tracking.log_metrics(run_id, rows)
    history = mlflow.MlflowClient().get_metric_history(run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 1.0), (1, 1 / 2), (2, 1 / 3)]
    tracking.finish(run_id)


@pytest.mark.parametrize("model", ["models:/mmh-global@champion", "models:/mmh-global/1"])
def test_a_registered_model_resolves_to_its_bundle(trained: Trained, model: str) -> None:
    assert trained.model_uri == "models:/mmh-global/1"
    path, cited = tracking.resolve_model(model, trained.config.tracking)
    assert cited == trained.model_uri
    assert load_bundle(path).hash == bundle_hash(trained.bundle)


def test_a_bundle_folder_resolves_to_itself(trained: Trained) -> None:
    assert tracking.resolve_model(str(trained.bundle), trained.config.tracking) == (
        trained.bundle,
        trained.bundle.as_uri(),
    )


def test_a_version_knows_where_it_comes_from(trained: Trained) -> None:
    version = mlflow.MlflowClient(trained.config.tracking.uri).get_model_version_by_alias("mmh-global", "champion")
    assert version.run_id == trained.run_id
    assert version.tags["mmh.data_hash"] == "abc"
    assert version.tags["mmh.bundle_hash"] == bundle_hash(trained.bundle)


@pytest.mark.parametrize("model", ["models:/mmh-global@candidate", "models:/mmh-global/17"])
def test_a_missing_alias_or_version_names_those_that_are(trained: Trained, model: str) -> None:
    expected = r"an alias of mmh-global \(models:/mmh-global@champion \(version 1\)\) or a version \(the newest is 1\)"
    with pytest.raises(ModelError, match=expected) as caught:
        tracking.resolve_model(model, trained.config.tracking)
    assert caught.value.received.startswith(f"{model} at {trained.config.tracking.uri}")


def test_a_missing_model_or_run_says_what_to_check(trained: Trained) -> None:
    with pytest.raises(ModelError, match=r"expected a registered model\. Check the name, and the store"):
        tracking.resolve_model("models:/nobody@champion", trained.config.tracking)
    with pytest.raises(ModelError, match="expected a bundle folder, s3://BUCKET/BUNDLE, models:/NAME@ALIAS"):
        tracking.resolve_model(f"runs:/{'0' * 32}/model", trained.config.tracking)


def test_artifacts_that_are_no_bundle_are_refused(trained: Trained) -> None:
    with pytest.raises(ModelError, match="has no such bundle"):
        tracking.resolve_model(f"runs:/{trained.run_id}/figures", trained.config.tracking)


def test_pyfunc_harmonizes_a_table_as_the_harmonizer_does(trained: Trained, tmp_path: Path) -> None:
    anatomy = simulate_anatomy(Person(1), 6.0)
    shown = {name: 700 * canonical(anatomy, name, 6.0) * anatomy.brain for name in ("T1w", "T2w")}
    scans = {name: Volume(data.astype(np.float32), anatomy.affine) for name, data in shown.items()}
    brain = anatomy.brain
    for name, scan in scans.items():
        write_volume(scan, tmp_path / f"{name}.nii.gz")
    moved = anatomy.affine.copy()  # the mask of this archive lies on a grid of its own
    moved[:3, 3] -= 2 * moved[:3, 0]
    write_volume(Volume(np.pad(brain, ((2, 0), (0, 0), (0, 0))).astype(np.float32), moved), tmp_path / "mask.nii.gz")
    source, other, mask, out = (
        str(tmp_path / name) for name in ("T1w.nii.gz", "T2w.nii.gz", "mask.nii.gz", "out.nii.gz")
    )
    rows = [
        (source, "T1w", mask, out),
        (other, "T2w", None, None),
        (source, "FLAIR", None, None),
        (source, "T1w", None, source),
        (str(tmp_path / "nowhere.nii.gz"), "T1w", None, None),
    ]
    tracking.configure(trained.config.tracking)
    model = mlflow.pyfunc.load_model("models:/mmh-global@champion", model_config={"files": True})
    found = model.predict(pd.DataFrame(rows, columns=["path", "sequence", "mask", "output"]))
    assert found["status"].tolist() == ["done", "done", "failed", "failed", "failed"]
    assert (found["output"][0], found["reason"][:2].tolist()) == (out, ["", ""])
    assert found["scan"].isna().all()
    harmonizer = Harmonizer(load_bundle(trained.bundle))
    for number, (sequence, inside) in enumerate([("T1w", brain), ("T2w", None)]):
        expected = harmonizer.run(read_volume(tmp_path / f"{sequence}.nii.gz"), sequence, inside).volume
        np.testing.assert_array_equal(read_volume(found["output"][number]).data, expected.data)
    for reason, words in zip(found["reason"][2:], ["one of T1w, T2w", "the scan itself", "unreadable"], strict=True):
        assert words in reason
    assert model.predict(pd.DataFrame({"path": [source], "sequence": ["T1w"]}))["status"].tolist() == ["done"]


def test_pyfunc_takes_and_gives_bytes_and_no_files(trained: Trained, tmp_path: Path) -> None:
    anatomy = simulate_anatomy(Person(1), 6.0)
    scan = Volume((700 * canonical(anatomy, "T1w", 6.0) * anatomy.brain).astype(np.float32), anatomy.affine)
    for name, volume in {"T1w": scan, "mask": scan.like(anatomy.brain.astype(np.float32))}.items():
        write_volume(volume, tmp_path / f"{name}.nii.gz")
    packed, mask = ((tmp_path / f"{name}.nii.gz").read_bytes() for name in ("T1w", "mask"))
    path, plain = str(tmp_path / "T1w.nii.gz"), gzip.decompress(packed)
    rows = [
        {"scan": packed, "scan_mask": mask},
        {"scan": plain, "scan_mask": b""},
        {"scan": packed[:1000]},
        {"scan": b"no image"},
        {"scan": packed, "scan_mask": packed[:-1000]},
        {"path": path},
        {"scan": packed, "output": path},
        {},
    ]
    tracking.configure(trained.config.tracking)
    model = mlflow.pyfunc.load_model("models:/mmh-global@champion")
    found = model.predict(pd.DataFrame(rows).assign(sequence="T1w"))
    assert found["status"].tolist() == ["done"] * 2 + ["failed"] * 6, found["reason"].tolist()
    reasons = [
        "scan.nii.gz: ",
        "scan.nii: ",
        "scan_mask.nii.gz: ",
        "this model does not read files",
        "together with output",
        "no sc",
    ]
    for reason, words in zip(found["reason"][2:], reasons, strict=True):
        assert words in reason
        assert "mmh-served" not in reason
    harmonizer = Harmonizer(load_bundle(trained.bundle))
    for made, inside in zip(found["scan"][:2], (anatomy.brain, None), strict=True):
        (tmp_path / "made.nii.gz").write_bytes(made)
        expected = harmonizer.run(read_volume(path), "T1w", inside).volume
        np.testing.assert_array_equal(read_volume(tmp_path / "made.nii.gz").data, expected.data)
    many = model.predict(pd.DataFrame({"scan": [b"no image"] * 17, "sequence": "T1w"}))
    assert "row 17 of a request; expected 16 scans at most" in many["reason"][16]


@pytest.mark.parametrize("base", ["registered", "a folder with a space"])
def test_pyfunc_of_a_target_finds_its_base_in_the_store_or_where_the_caller_says(
    trained: Trained, tmp_path: Path, base: str
) -> None:
    bundle, uri = load_bundle(trained.bundle), trained.model_uri
    if base != "registered":
        uri = Path(shutil.copytree(trained.bundle, tmp_path / "the base")).as_uri()
    attach(bundle.model, "blank", 2)
    knots = np.linspace(0, 1, 64)
    style = SiteStyle(knots, knots**2, np.linspace(0, 1, 257), 0.02)
    tuned = TunedAdapter(state_of(bundle.model, "blank"), {"loss": 1.0}, {"loss": 1.0}, 1)
    config = replace(trained.config, target=TargetConfig(rank=2))
    training = {"T1w": {"images": []}}
    given = {"T1w": style}, {"T1w": tuned}, config, training
    save_target(tmp_path / "north", "north", {"hash": bundle.hash, "uri": uri}, *given)
    tracking.configure(trained.config.tracking)
    run_id = tracking.start_run(config, "target-north", None, {})
    tracking.register(run_id, tmp_path / "north", "mmh-target-north", config.tracking)
    tracking.finish(run_id)
    anatomy = simulate_anatomy(Person(1), 6.0)
    scan = Volume((700 * canonical(anatomy, "T1w", 6.0) * anatomy.brain).astype(np.float32), anatomy.affine)
    write_volume(scan, tmp_path / "T1w.nii.gz")
    named = {"files": True}
    if base != "registered":  # a target may not lead to any place: who loads it names the folder
        with pytest.raises(ModelError, match=r"recorded in a target; expected a registered model.*model_config"):
            mlflow.pyfunc.load_model("models:/mmh-target-north@champion")
        named["base"] = str(tmp_path / "the base")
    model = mlflow.pyfunc.load_model("models:/mmh-target-north@champion", model_config=named)
    assert mlflow.get_tracking_uri() == trained.config.tracking.uri
    found = model.predict(pd.DataFrame({"path": [str(tmp_path / "T1w.nii.gz")], "sequence": ["T1w"]}))
    assert found["status"].tolist() == ["done"], found["reason"][0]
    target = load_target(tmp_path / "north")
    own = load_bundle(trained.bundle)
    target.attach(own)
    (expected,) = Harmonizer(own).run_targets(read_volume(tmp_path / "T1w.nii.gz"), "T1w", None, [target])
    np.testing.assert_array_equal(read_volume(found["output"][0]).data, expected.volume.data)


def test_a_name_of_another_sites_target_is_not_reused(trained: Trained, tmp_path: Path) -> None:
    style = SiteStyle(np.linspace(0, 1, 64), np.linspace(0, 1, 64), np.linspace(0, 1, 257), 0.0)
    curve_alone = TunedAdapter({}, {"loss": 1.0}, {"loss": 1.0}, 0)
    given = {"T1w": style}, {"T1w": curve_alone}, trained.config, {"T1w": {"images": []}}
    tracking.configure(trained.config.tracking)
    run_id = tracking.start_run(trained.config, "target-sites", None, {})
    for site in ("site-1", "site 1"):
        save_target(tmp_path / "bundles" / site, site, {"hash": "b" * 64, "uri": ""}, *given)
    first = tracking.register(run_id, tmp_path / "bundles/site-1", "mmh-target-site-1", trained.config.tracking)
    with pytest.raises(
        ModelError, match=r"site 'site 1' to register as mmh-target-site-1, which is the target of site 'site-1'"
    ):
        tracking.register(run_id, tmp_path / "bundles/site 1", "mmh-target-site-1", trained.config.tracking)
    tracking.finish(run_id)
    _, uri = tracking.resolve_target("site-1", "", trained.config.tracking)
    assert uri == first
    with pytest.raises(ModelError, match=r"the target of site 'site-1'; expected a target of site 'site 1'"):
        tracking.resolve_target("site 1", "", trained.config.tracking)


def test_the_store_is_from_the_settings_then_the_environment_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.configure(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///theirs.db")
    assert tracking.configure(TrackingConfig()) == f"sqlite:///{tmp_path}/theirs.db"
    assert tracking.configure(TrackingConfig(uri="http://127.0.0.1:1")) == "http://127.0.0.1:1"
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///theirs.db"
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:1"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_without_a_store_no_store_is_made(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no store at sqlite:///.*mlflow\.db.*MLFLOW_TRACKING_URI"):
        tracking.resolve_model("models:/mmh-global@champion", TrackingConfig())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_a_bundle_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ModelError, match=rf"{folder}: (no such folder|a folder without config\.json); expected a bundle"
    ):
        tracking.resolve_model(folder, TrackingConfig())


def test_long_values_are_cut_visibly() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "ab…"
