"""Stage 2 on Ray, small but complete.

Sites are trained in parallel and registered with their lineage; scans are then harmonized to them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlflow
import nibabel as nib
import numpy as np
import pytest
import ray

from mmh_ray import tracking
from mmh_ray.bids.ledger import read_ledger
from mmh_ray.config import Config, ManifestConfig, PhantomConfig, StyleConfig, TargetConfig, TrackingConfig
from mmh_ray.distributed.evaluate import evaluate
from mmh_ray.distributed.harmonize import harmonize, plan
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.distributed.prepare import prepare
from mmh_ray.distributed.target_plan import plan_site
from mmh_ray.distributed.train_target import TrainedTarget, train_targets
from mmh_ray.errors import ConfigError, DataError, ModelError
from mmh_ray.evaluation.statistics.summary import by_sequence
from mmh_ray.harmonization.job import Job
from mmh_ray.models.bundle import bundle_hash, load_bundle
from mmh_ray.models.target.bundle import load_target
from mmh_ray.shards import PreparedStore
from mmh_ray.tracking import outage
from tests.mlflow_server import MlflowServer

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic|ray)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(mlflow|ray)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # files that Ray does not close
]

SITES = ("alder", "birch")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Path]:
    """The working directory for these tests, without the user's MLflow store.

    It gets an archive of two sites, its manifest and its prepared volumes.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("target")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def config(workshop: Path, tiny_config: Config) -> Config:
    return replace(
        tiny_config,
        phantom=PhantomConfig(sites=2, subjects_per_site=4, travelers=1, spacing_mm=6),
        manifest=ManifestConfig(val_fraction=0.25, test_fraction=0),
        target=TargetConfig(
            SITES, images=3, steps=4, slabs_per_plane=1, restyles=1, validate_every=2, storage=str(workshop)
        ),
        tracking=TrackingConfig(uri=f"sqlite:///{workshop / 'mlflow.db'}"),
    )


@pytest.fixture(scope="module")
def store(workshop: Path, config: Config) -> str:
    bids, manifest, prepared = (str(workshop / name) for name in ("bids", "manifest.parquet", "prepared"))
    make_archive(bids, config.phantom)
    build_manifest(bids, manifest, config)
    prepare(manifest, prepared, config)
    return prepared


@pytest.fixture(scope="module")
def trained(store: str, tiny_bundle: Path, config: Config) -> list[TrainedTarget]:
    return train_targets(store, str(tiny_bundle), config)


@pytest.fixture(scope="module")
def moving(trained: list[TrainedTarget], workshop: Path, tiny_bundle: Path, config: Config) -> Job:
    """A finished job that harmonizes the traveler's scans to both sites, one given by name and one by its bundle."""
    out, model = workshop / "moved", str(tiny_bundle)
    job = Job(str(workshop / "bids"), str(out), model, config, ("traveler01",), targets=("alder", trained[1].bundle))
    assert {row["action"] for row in plan(job)} == {"harmonize"}
    assert harmonize(job) == {"done": 8}
    return job


def test_every_site_is_registered_with_the_exact_base(
    trained: list[TrainedTarget], tiny_bundle: Path, store: str, config: Config
) -> None:
    client = mlflow.MlflowClient(config.tracking.uri)
    assert [target.site for target in trained] == list(SITES)
    for target in trained:
        name = f"mmh-target-{target.site}"
        assert target.model_uri == f"models:/{name}/1"
        version = client.get_model_version_by_alias(name, "champion")
        run = client.get_run(target.run_id)
        assert (version.run_id, run.info.status) == (target.run_id, "FINISHED")
        assert run.data.tags["mmh.base_hash"] == bundle_hash(tiny_bundle)
        assert "T1w/reconstruction" in run.data.metrics
        (data,) = run.inputs.dataset_inputs
        assert data.dataset.digest == PreparedStore(store).data_hash[:36]
        loaded = load_target(target.bundle)
        assert loaded.facts["base"] == {"hash": bundle_hash(tiny_bundle), "uri": tiny_bundle.as_uri()}
        assert set(loaded.styles) == {"T1w", "T2w"}
        folder, cited = tracking.resolve_target(target.site, tiny_bundle, config.tracking)
        assert (load_target(folder).hash, cited) == (loaded.hash, target.model_uri)


def test_an_outage_of_mlflow_loses_nothing(
    store: str,
    tiny_bundle: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(outage, "PAUSE_S", 0.5)
    server = MlflowServer(tmp_path)
    server.start()

    def is_started() -> bool:
        found = mlflow.MlflowClient(server.uri).search_runs(["1"], "attributes.run_name = 'target-alder'")
        return bool(found) and bool(found[0].inputs.dataset_inputs)

    def go_down_and_come_back() -> None:
        _wait_until(is_started)
        server.kill()
        _wait_until(lambda: "waiting for up to" in caplog.text)  # the training has ended by then
        server.start()

    target = replace(config.target, site=("alder",), storage=str(tmp_path))
    config = replace(config, target=target, tracking=TrackingConfig(uri=server.uri))
    try:
        with ThreadPoolExecutor() as pool:
            operator = pool.submit(go_down_and_come_back)
            (trained,) = train_targets(store, str(tiny_bundle), config)
            operator.result()
        client = mlflow.MlflowClient(server.uri)
        assert client.get_run(trained.run_id).info.status == "FINISHED"
        for sequence in ("T1w", "T2w"):
            history = client.get_metric_history(trained.run_id, f"{sequence}/reconstruction")
            assert sorted(metric.step for metric in history) == list(range(1, config.target.steps + 1))
        assert trained.model_uri == "models:/mmh-target-alder/1"
        assert list((tmp_path / "target-metrics").iterdir()) == []
    finally:
        server.kill()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_nobody_of_the_test_split_is_looked_at(trained: list[TrainedTarget]) -> None:
    for target in trained:
        training = load_target(target.bundle).facts["training"]
        for sequence in ("T1w", "T2w"):
            found = training[sequence]
            assert len(found["images"]) == 2
            assert len(found["validation_images"]) == 1  # three in all
            assert all(name.startswith(f"sub-{target.site}") for name in found["images"] + found["validation_images"])
            sources = found["sources"] + found["validation_sources"]
            assert len(set(sources)) == len(sources) == 4
            assert not [name for name in sources if "traveler" in name or target.site in name]


def test_one_run_moves_an_archive_to_several_targets(moving: Job, config: Config) -> None:
    job, out = moving, Path(moving.out)
    client = mlflow.MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name("mmh-ray-harmonize")
    (archive_run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'bids'")
    assert (archive_run.data.metrics["images.done"], archive_run.info.status) == (8, "FINISHED")
    assert archive_run.data.tags["mmh.ray_job_id"] == ray.get_runtime_context().get_job_id()
    assert "qc.T1w.preservation.p50" in archive_run.data.metrics
    rows = read_ledger(out / "ledger.parquet")
    assert {row["target"] for row in rows} == set(SITES)
    assert len({row["settings_hash"] for row in rows}) == 2
    names = [path.name for path in sorted((out / "sub-traveler01" / "ses-birch" / "anat").glob("*.nii.gz"))]
    stem = "sub-traveler01_ses-birch_desc-harmonized"
    assert names == [f"{stem}{site}_{kind}.nii.gz" for site in ("Alder", "Birch") for kind in ("T1w", "T2w")]
    assert harmonize(job) == {"skipped": 8}
    assert harmonize(replace(job, targets=("alder",))) == {"skipped": 4}
    one, two = (nib.load(out / "sub-traveler01/ses-birch/anat" / name).get_fdata() for name in (names[0], names[2]))
    assert not np.allclose(one, two, atol=1e-3)


def test_the_travelers_own_scan_at_the_target_is_no_input(moving: Job, workshop: Path) -> None:
    bids, out = workshop / "other-answer", workshop / "other-answer-moved"
    shutil.copytree(moving.bids, bids)
    answer = bids / "sub-traveler01/ses-alder/anat/sub-traveler01_ses-alder_T1w.nii.gz"
    scan = nib.load(answer)
    nib.save(nib.Nifti1Image((scan.get_fdata() ** 2).astype(np.float32), scan.affine), answer)
    job = replace(moving, bids=str(bids), out=str(out), sequences=("T1w",), targets=("alder",))
    assert sum(harmonize(job).values()) == 2
    name = "sub-traveler01/ses-birch/anat/sub-traveler01_ses-birch_desc-harmonizedAlder_T1w.nii.gz"
    first, other = (nib.load(Path(folder, name)).get_fdata() for folder in (moving.out, out))
    assert np.array_equal(first, other)


def test_a_scan_can_be_the_target(workshop: Path, store: str, tiny_bundle: Path, config: Config) -> None:
    reference = workshop / "bids/sub-birch01/anat/sub-birch01_T1w.nii.gz"
    out = workshop / "like"
    job = Job(str(workshop / "bids"), str(out), str(tiny_bundle), config, ("traveler01",), target_image=str(reference))
    assert harmonize(job) == {"done": 2, "refused": 2}  # a T1w says nothing of T2w
    refused = [row for row in read_ledger(out / "ledger.parquet") if row["status"] == "refused"]
    assert {row["reason"] for row in refused} == {"sequence T2w"}
    assert {row["expected"] for row in refused} == {"a sequence of target sub-birch01_T1w: T1w"}
    (sidecar, _) = sorted(out.glob("sub-traveler01/*/anat/*.json"))
    facts = json.loads(sidecar.read_text())["TargetModel"]
    assert 0 <= facts["style_distance"] < 2
    assert facts["style_encoder"]["backbone"] == "embedded"
    assert facts["reference_mask_sha256"] is not None  # the archive's
    archives = {"raw": str(workshop / "manifest.parquet"), "ours": str(out)}
    found = evaluate(archives, str(workshop / "like-evaluation"), config, target="birch")
    assert found["about"]["images"] == {"T1w": 1, "T2w": 1}
    assert "psnr" in found["ours"]["T1w"]


def test_an_adapter_of_another_base_is_refused(
    trained: list[TrainedTarget], workshop: Path, tiny_bundle: Path, config: Config
) -> None:
    other = workshop / "other"
    other.mkdir()
    for path in tiny_bundle.iterdir():
        (other / path.name).write_bytes(path.read_bytes().replace(b"d" * 64, b"e" * 64))
    job = Job(str(workshop / "bids"), str(workshop / "out"), str(other), config, targets=("alder",))
    with pytest.raises(ModelError, match="train the target on this one"):
        harmonize(job)
    foreign = replace(job, model=str(tiny_bundle), config=replace(config, style=StyleConfig(backbone="RN50")))
    with pytest.raises(ModelError, match=r"style\.backbone='RN50'.*recorded 'embedded'"):
        harmonize(foreign)
    assert not (workshop / "out").exists()


def test_the_evaluation_scores_every_method(moving: Job, workshop: Path, config: Config) -> None:
    bids, unified, moved = moving.bids, str(workshop / "unified"), moving.out
    harmonize(replace(moving, out=unified, targets=()))
    archives = {"raw": str(workshop / "manifest.parquet"), "ours": moved, "global": unified}
    out, truth = workshop / "evaluation", f"{bids}/derivatives/truth"
    found = evaluate(archives, str(out), config, truth, target="alder")
    methods = ("raw", "nyul", "n4_histogram_matching", "truth", "global", "ours")
    assert found.keys() == {*methods, "differences", "about"}
    for method in methods:
        assert found[method].keys() == {"T1w", "T2w"}
    for sequence in ("T1w", "T2w"):
        values = by_sequence(found)[sequence]
        assert all(np.isfinite(value) for row in values.values() for value in row.values())
        assert values["raw"]["gradient_correlation"] == pytest.approx(1)
        assert values["nyul"]["w1"] < values["raw"]["w1"]  # it matches the cohort's deciles
        assert values["nyul"]["w1_of_raw"] == pytest.approx(values["nyul"]["w1"] / values["raw"]["w1"])
        assert values["raw"]["identity"] == 0 < values["ours"]["identity"]
        assert "truth_nrmse" in values["raw"]
        assert 0 < values["ours"]["dice_truth"] <= 1
        assert "site_probe_style" not in values["ours"]  # one source site
        assert (out / f"figures/{sequence}_before_after.png").stat().st_size > 10_000
    assert found["about"]["problems"] == []
    assert "scan at alder: " in (out / "report.html").read_text()
    other = replace(config, style=StyleConfig(slices=5))
    with pytest.raises(ModelError, match="style encoder"):
        evaluate(archives, str(out), other, truth, target="alder")
    with pytest.raises(DataError, match="nobody scanned at oak"):
        evaluate(archives, str(out), config, target="oak")


def test_what_cannot_be_trained_is_named(store: str, tiny_bundle: Path, config: Config) -> None:
    with pytest.raises(ConfigError, match="no target site"):
        train_targets(store, str(tiny_bundle), replace(config, target=TargetConfig()))
    found, bundle = PreparedStore(store), load_bundle(tiny_bundle)
    with pytest.raises(DataError, match=r"oak.*alder, birch"):
        plan_site(found, "oak", bundle, config)
    found.index = [row for row in found.index if row["site"] != "alder" or row["image_id"] < "sub-alder03"]
    with pytest.raises(DataError, match="3 images of a sequence"):
        plan_site(found, "alder", bundle, config)
