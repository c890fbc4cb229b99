"""Stage 1 on Ray Train, tiny but whole: MLflow, the registry, two workers, refusals, and a run killed in the middle."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import psutil
import pytest
import safetensors.torch
import torch

from mmh_ray import tracking
from mmh_ray.config import (
    Config,
    GridConfig,
    HarmonizeConfig,
    ManifestConfig,
    ModelConfig,
    PhantomConfig,
    PrepareConfig,
    TrackingConfig,
    TrainConfig,
    to_dict,
)
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.distributed.prepare import prepare
from mmh_ray.distributed.run_storage import RECORD
from mmh_ray.distributed.train import STATE, TrainedModel, train_global
from mmh_ray.errors import ConfigError
from mmh_ray.models.bundle import bundle_hash, load_bundle
from mmh_ray.shards import PreparedStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic|ray)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(mlflow|ray)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # files that Ray leaves to the garbage collector
]

STEPS = 8
PATIENCE_S = 900

DRIVER = """
import json, sys
from pathlib import Path
from mmh_ray.config import Config, from_dict
from mmh_ray.distributed.train import train_global
spec = json.loads(Path(sys.argv[1]).read_text())
train_global(spec["store"], from_dict(Config, spec["config"]))
"""


@dataclass
class Trained:
    """A finished run."""

    config: Config
    model: TrainedModel
    history: dict[str, dict[int, float]]
    """Metric to step to value."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to stand in, and no MLflow store of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("train")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def config(workshop: Path) -> Config:
    """Eight steps of a network of a few thousand weights; a validation at every step leaves time to be killed in."""
    return Config(
        phantom=PhantomConfig(sites=2, subjects_per_site=4, travelers=0, spacing_mm=6),
        manifest=ManifestConfig(val_fraction=0.25, test_fraction=0),
        grid=GridConfig(6.0, (32, 40, 32)),
        prepare=PrepareConfig(n4=False),
        model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2), patch=2),
        train=TrainConfig(
            steps=STEPS,
            volumes_per_step=4,
            slabs_per_plane=1,
            warmup_steps=2,
            validate_every=1,
            checkpoint_every=2,
            validation_groups=6,
            storage=str(workshop / "runs"),
            run_name="whole",
        ),
        harmonize=HarmonizeConfig(planes=("axial",)),
        tracking=TrackingConfig(uri=f"sqlite:///{workshop / 'mlflow.db'}"),
    )


@pytest.fixture(scope="module")
def store(workshop: Path, config: Config, ray_cluster: None) -> str:
    """Two sites of four subjects, prepared."""
    bids, manifest, prepared = (str(workshop / name) for name in ("bids", "manifest.parquet", "prepared"))
    make_archive(bids, config.phantom)
    build_manifest(bids, manifest, config)
    assert prepare(manifest, prepared, config).done == 16
    return prepared


def training(config: Config, **changes: object) -> Config:
    """The configuration with other training settings."""
    return replace(config, train=replace(config.train, **changes))


def run(store: str, config: Config) -> Trained:
    """Train, and collect what MLflow was told."""
    model = train_global(store, config)
    client = mlflow.MlflowClient(config.tracking.uri)
    names = client.get_run(model.run_id).data.metrics
    history = {
        name: {entry.step: entry.value for entry in client.get_metric_history(model.run_id, name)} for name in names
    }
    return Trained(config, model, history)


@pytest.fixture(scope="module")
def whole(store: str, config: Config) -> Trained:
    """One worker, no interruption."""
    return run(store, config)


@pytest.fixture(scope="module")
def pair(store: str, config: Config, whole: Trained) -> Trained:
    """The same with two workers."""
    return run(store, training(config, workers=2, run_name="pair"))


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints of a run."""
    return [int(safetensors.torch.load_file(path)["steps_done"]) for path in folder.glob(f"checkpoint_*/{STATE}")]


# --- one worker ---


def test_bundle_holds_the_best_weights_and_what_they_were_made_of(store: str, whole: Trained) -> None:
    bundle = load_bundle(whole.model.bundle)
    assert bundle.config.model == whole.config.model
    assert bundle.config.grid == whole.config.grid
    assert bundle.facts["data_hash"] == PreparedStore(store).data_hash
    assert bundle.facts["training"]["steps"] == STEPS
    assert bundle.facts["training"]["counts"] == {site: {"T1w": 3, "T2w": 3} for site in ("alder", "birch")}
    assert torch.equal(bundle.model.domain_quantiles, bundle.quantiles)
    assert all(torch.isfinite(value).all() for value in bundle.model.state_dict().values())
    assert whole.model.validation["val_loss"] == pytest.approx(min(whole.history["val_loss"].values()), abs=1e-5)


def test_mlflow_has_every_step_and_validation(whole: Trained) -> None:
    steps = list(range(1, STEPS + 1))
    for name in ("loss", "mse", "gradient", "style", "learning_rate", "gradient_norm", "data_wait_share", "val_loss"):
        assert sorted(whole.history[name]) == steps, name
        assert all(math.isfinite(value) for value in whole.history[name].values())
    assert all(0 <= value <= 1 for value in whole.history["data_wait_share"].values())
    client = mlflow.MlflowClient(whole.config.tracking.uri)
    assert client.get_run(whole.model.run_id).info.status == "FINISHED"
    figures = {Path(item.path).name for item in client.list_artifacts(whole.model.run_id, "figures")}
    assert figures == {"T1w_samples.png", "T2w_samples.png"}


def test_the_champion_is_this_bundle_and_says_where_it_comes_from(store: str, whole: Trained) -> None:
    cited_version = whole.model.model_uri.rpartition("/")[2]
    path, cited = tracking.resolve_model(whole.model.model_uri, whole.config.tracking)
    assert cited == f"models:/mmh-global/{cited_version}"
    assert load_bundle(path).hash == bundle_hash(whole.model.bundle)
    client = mlflow.MlflowClient(whole.config.tracking.uri)
    version = client.get_model_version("mmh-global", cited_version)
    assert version.run_id == whole.model.run_id
    assert version.tags["mmh.bundle_hash"] == bundle_hash(whole.model.bundle)
    assert version.tags["mmh.data_hash"] == PreparedStore(store).data_hash
    assert "mmh.code_version" in version.tags
    champion = client.get_model_version_by_alias("mmh-global", "champion")
    newest = max(int(found.version) for found in client.search_model_versions("name='mmh-global'"))
    assert int(champion.version) == newest


def test_only_the_last_checkpoints_are_kept(whole: Trained) -> None:
    assert sorted(saved_steps(Path(whole.config.train.storage, "whole"))) == [STEPS - 2, STEPS]


@pytest.mark.parametrize("changes", [{"steps": STEPS + 1}, {"learning_rate": 1e-4}, {"seed": 5}])
def test_the_name_of_a_run_with_other_settings_is_refused(store: str, whole: Trained, changes: dict) -> None:
    with pytest.raises(ConfigError, match="'whole', which exists with other settings or data"):
        train_global(store, training(whole.config, **changes))
    client = mlflow.MlflowClient(whole.config.tracking.uri)
    assert client.get_run(whole.model.run_id).info.status == "FINISHED"


# --- two workers ---


def test_two_workers_log_the_loss_that_one_worker_logs(whole: Trained, pair: Trained) -> None:
    for name in ("mse", "gradient", "style", "consistency", "loss"):
        assert pair.history[name][1] == pytest.approx(whole.history[name][1], rel=1e-4), name
    assert pair.history["gradient_norm"][1] == pytest.approx(whole.history["gradient_norm"][1], rel=1e-4)
    assert whole.history["consistency"][1] > 0.01


def test_two_workers_come_to_where_one_comes(whole: Trained, pair: Trained) -> None:
    """Same groups, noise and order; sums are rounded in another order."""
    assert sorted(pair.history["loss"]) == list(range(1, STEPS + 1))
    assert pair.history["learning_rate"] == pytest.approx(whole.history["learning_rate"])
    assert pair.model.validation["val_loss"] == pytest.approx(whole.model.validation["val_loss"], rel=1e-4)
    assert load_bundle(pair.model.bundle).facts["training"]["steps"] == STEPS


# --- a killed run ---


def kill(process: subprocess.Popen) -> None:
    """The driver first, without a chance to clean up, then the Ray that it started."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for child in family:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)


def checkpointed(folder: Path) -> bool:
    """Whether a whole checkpoint is there and Ray Train has noted it."""
    notes = folder / "checkpoint_manager_snapshot.json"
    try:
        return notes.is_file() and bool(json.loads(notes.read_text())["checkpoint_results"])
    except (ValueError, KeyError):  # half-written
        return False


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_end(
    store: str, config: Config, whole: Trained, workshop: Path
) -> None:
    settings = training(config, run_name="killed")
    spec, folder = workshop / "driver.json", Path(config.train.storage, "killed")
    spec.write_text(json.dumps({"store": store, "config": to_dict(settings)}))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "2"  # a report in two seconds leaves time to be killed in
    with open(workshop / "driver.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(spec)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + PATIENCE_S
            while not checkpointed(folder):
                assert process.poll() is None, (workshop / "driver.log").read_text()
                assert time.monotonic() < end, (workshop / "driver.log").read_text()
                time.sleep(0.02)
        finally:
            kill(process)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "bundle").exists()
    assert 2 <= max(saved_steps(folder)) < STEPS

    before, run_id = time.time() * 1000, json.loads((folder / RECORD).read_text())["run_id"]
    resumed = run(store, settings)
    assert resumed.model.run_id == run_id
    history = mlflow.MlflowClient(config.tracking.uri).get_metric_history(run_id, "loss")
    after = sorted(entry.step for entry in history if entry.timestamp >= before)
    assert after == list(range(STEPS + 1 - len(after), STEPS + 1))
    assert len(after) <= STEPS - 2  # it did not begin again
    assert resumed.model.validation["val_loss"] == pytest.approx(whole.model.validation["val_loss"], abs=1e-5)
    for step in after:
        assert resumed.history["loss"][step] == pytest.approx(whole.history["loss"][step], abs=1e-5)
