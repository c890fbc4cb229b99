"""Training on a cluster with a head and some nodes, some of which are killed.

The losses and metrics must equal those of an undisturbed training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from mmh_ray.config import Config, HarmonizeConfig, TrackingConfig, TrainConfig, to_dict
from mmh_ray.distributed.datasets import GroupMaker, validation_batches
from mmh_ray.distributed.domains import UnifiedDomain
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.trainer import Trainer
from mmh_ray.shards import PreparedStore
from tests.distributed.test_datasets import CONFIG, write_store
from tests.ray_nodes import Nodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from MLflow, Ray and their dependencies
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STEPS = 32
"""Enough for eight checkpoints. Each waits until Ray Train takes its report, which gives time to kill a node."""
REPORT_S = "1"
"""Seconds between two reports that Ray Train takes."""
CHECKPOINT_EVERY = 4
PATIENCE_S = 400
TOLERANCE = 1e-4
"""Relative tolerance: two workers add the same numbers in another order than one."""

TRAIN = """
import json, logging, sys
from pathlib import Path
from mmh_ray.config import Config, from_dict
from mmh_ray.distributed.train import train_global
logging.basicConfig(level=logging.INFO)
spec = json.loads(Path(sys.argv[1]).read_text())
trained = train_global(spec["store"], from_dict(Config, spec["config"]))
Path(sys.argv[2]).write_text(json.dumps({"run_id": trained.run_id, "validation": trained.validation}))
"""


GOES_ON = "training goes on from its last checkpoint"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight training volumes, four for validation."""
    return write_store(str(tmp_path_factory.mktemp("store")))


def settings(folder: Path, wait_s: float = PATIENCE_S) -> Config:
    """Two workers, nothing simulated, a checkpoint every few steps."""
    train = TrainConfig(
        steps=STEPS,
        volumes_per_step=4,
        slabs_per_plane=1,
        warmup_steps=2,
        simulated_share=0.0,
        validate_every=4,
        validation_groups=4,
        checkpoint_every=CHECKPOINT_EVERY,
        workers=2,
        wait_s=wait_s,
        storage=str(folder / "runs"),
        run_name="lossy",
    )
    harmonize = HarmonizeConfig(planes=("axial",))
    tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    return replace(CONFIG, train=train, harmonize=harmonize, tracking=tracking)


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """Settings with the patience that the test's parameter gives."""
    return settings(tmp_path, getattr(request, "param", PATIENCE_S))


@dataclass
class Driver:
    """`train_global` in a separate process that has joined the cluster."""

    process: subprocess.Popen
    log_file: Path
    result: Path
    run_folder: Path

    def log(self) -> str:
        """Its log so far."""
        return self.log_file.read_text(errors="replace")

    def wait_for_a_checkpoint(self, after: str | None = None) -> str:
        """Wait until Ray Train has noted a checkpoint other than ``after``; returns its name."""
        deadline = time.monotonic() + PATIENCE_S
        while (noted := self._noted_checkpoint()) in (None, after):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return noted

    def _noted_checkpoint(self) -> str | None:
        try:
            notes = json.loads((self.run_folder / "checkpoint_manager_snapshot.json").read_text())
        except (OSError, ValueError):  # not there yet, or half-written
            return None
        latest = notes["latest_checkpoint_result"]
        return latest and latest["checkpoint_dir_name"]


@pytest.fixture
def driver(nodes: Nodes, store: str, config: Config, tmp_path: Path) -> Iterator[Driver]:
    """A training that has just begun."""
    spec, result, log_file = (tmp_path / name for name in ("spec.json", "result.json", "driver.log"))
    spec.write_text(json.dumps({"store": store, "config": to_dict(config)}))
    environment = {
        **os.environ,
        "RAY_ADDRESS": nodes.cluster.address,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": REPORT_S,
    }
    with open(log_file, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(spec), str(result)],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield Driver(process, log_file, result, Path(config.train.storage, config.train.run_name))
    process.kill()
    process.wait(60)


Figures = tuple[dict[int, float], dict[str, float]]
"""Loss of every step, and validation of the best weights."""


@pytest.fixture(scope="module")
def undisturbed(store: str, tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Figures of the same training without Ray and in one process."""
    config = settings(tmp_path_factory.mktemp("undisturbed"))
    domain = UnifiedDomain.of(PreparedStore(store), config)
    maker = GroupMaker(store, config, domain)
    torch.manual_seed(config.train.seed)
    model = GlobalHarmonizer(config.model, config.train, domain.as_tensor(config.model.sequences))
    trainer = Trainer(model, config.train)
    validation = validation_batches(store, config, domain)
    share = config.train.volumes_per_step
    losses = {}
    best: dict[str, float] = {}
    for step in range(1, config.train.steps + 1):
        numbers = np.arange((step - 1) * share, step * share)
        losses[step] = trainer.step(SlabBatch.of_groups(maker({"id": numbers})))["loss"]
        if step % config.train.validate_every == 0:
            found = trainer.validate(validation)
            best = min(best or found, found, key=lambda losses: losses["val_loss"])
    return losses, best


def check_figures(driver: Driver, undisturbed: Figures, config: Config) -> None:
    """Check that the training succeeded, with every step in MLflow and the figures of the undisturbed training."""
    assert driver.process.wait(PATIENCE_S) == 0, driver.log()
    result = json.loads(driver.result.read_text())
    losses, validation = undisturbed
    client = mlflow.MlflowClient(config.tracking.uri)
    logged = {entry.step: entry.value for entry in client.get_metric_history(result["run_id"], "loss")}
    assert sorted(logged) == list(range(1, STEPS + 1))
    assert logged == pytest.approx(losses, rel=TOLERANCE)
    assert result["validation"] == pytest.approx(validation, rel=TOLERANCE)
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    assert list((driver.run_folder / "metrics").iterdir()) == []


@pytest.mark.parametrize("nodes", [3], indirect=True)
def test_a_lost_node_without_a_worker_changes_nothing_and_after_one_with_a_worker_training_goes_on_with_what_is_left(
    nodes: Nodes, driver: Driver, undisturbed: Figures, config: Config
) -> None:
    first = driver.wait_for_a_checkpoint()
    busy = nodes.holding("RayTrainWorker")
    (idle,) = [node for node in nodes.running if node not in busy]
    nodes.kill(idle)
    driver.wait_for_a_checkpoint(after=first)
    assert GOES_ON not in driver.log()
    assert "2 training workers with 1.5 CPU and 1 loaders each" in driver.log()
    lost, _ = busy
    nodes.kill(lost)
    check_figures(driver, undisturbed, config)
    log = driver.log()
    assert f"{GOES_ON} (1 of 3 times)" in log
    assert "2 training workers with 1 CPU and 1 loaders each" in log


@pytest.mark.parametrize(("nodes", "config"), [(1, 5)], indirect=True)
def test_with_no_node_left_training_says_what_it_waits_for_and_ends(nodes: Nodes, driver: Driver) -> None:
    driver.wait_for_a_checkpoint()
    for node in list(nodes.running):
        nodes.kill(node)
    assert driver.process.wait(PATIENCE_S) == 1, driver.log()
    log = driver.log()
    assert "ConfigError" in log
    assert "raise train.wait_s; the same command goes on from the last checkpoint" in log
