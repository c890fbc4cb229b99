"""Evaluations and aliases in a real MLflow store on SQLite: only a better model moves the alias."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mmh_ray import tracking
from mmh_ray.bids.derivatives import write_sidecar
from mmh_ray.bids.ledger import LEDGER, LEDGER_SCHEMA, write_ledger
from mmh_ray.config import Config, EvaluateConfig, GridConfig, ModelConfig, PromoteConfig, TrackingConfig
from mmh_ray.distributed.cohort_metrics import entries_of
from mmh_ray.distributed.selection import data_hash
from mmh_ray.errors import ConfigError, DataError, ModelError
from mmh_ray.evaluation.baselines.image_baselines import Raw
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Case, ScoringSettings
from mmh_ray.evaluation.metrics.method_metrics import gather, mean_metrics, metrics_and_pictures
from mmh_ray.evaluation.metrics.registry import METRICS
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.metrics.scoring import score_case
from mmh_ray.evaluation.promotion.comparability import conditions
from mmh_ray.evaluation.report.files import EVALUATION, PER_IMAGE, REPORT, images_table
from mmh_ray.imaging.volume import Volume, read_volume, write_volume
from mmh_ray.models.bundle import bundle_hash, save_bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.shipped import BASE_MODEL, shipped_bundle
from mmh_ray.provenance import write_json
from mmh_ray.tracking.promotion import check_model, keep_with_model, promote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic)(\..*)?"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:mlflow(\..*)?"),
    pytest.mark.filterwarnings(r"ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

CHAMPION, SAME, CANDIDATE = (f"models:/mmh-global/{version}" for version in (1, 2, 3))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str]:
    """Three registered versions, the first of which is champion, and the hash of their bundle."""
    folder = tmp_path_factory.mktemp("store")
    config = Config(
        model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2)),
        grid=GridConfig(spacing_mm=8.0, shape=(16, 16, 16)),
        promote=PromoteConfig(improve=("truth_nrmse",), keep=("gradient_correlation",), watch=()),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/tracking.db", experiment="tests"),
    )
    quantiles = torch.linspace(0, 1, 257).repeat(2, 2, 1)
    model = GlobalHarmonizer(config.model, config.train, quantiles)
    save_bundle(folder / "global", model, config, quantiles=quantiles, data_hash="abc", training={"steps": 3})
    tracking.configure(config.tracking)
    for alias in ("champion", "same", "candidate"):
        named = replace(config, tracking=replace(config.tracking, alias=alias))
        tracking.register(
            tracking.start_run(named, alias, None, {}), folder / "global", named.tracking.model_name, named.tracking
        )
    return config, bundle_hash(folder / "global")


def _evaluation(out: Path, error: float, data: str = "same") -> str:
    """A folder as `mmh evaluate` leaves it: eight subjects whose error to the truth differs by person."""
    facts = [{"image_id": f"sub-{i}_T1w", "subject": str(i), "site": "ab"[i % 2]} for i in range(8)]
    own: dict[str, Any] = dict.fromkeys(METRICS, np.nan) | {"gradient_correlation": 0.98}
    rows = [
        {**row, **own, "sequence": "T1w", "method": "ours", "truth_nrmse": error + 0.01 * i}
        for i, row in enumerate(facts)
    ]
    out.mkdir()
    pd.DataFrame(rows).to_parquet(out / PER_IMAGE)
    about = {"data_hash": data, "conditions": {"seed": 0}, "archives": {"raw": "/data/study", "ours": "/data/out"}}
    values = {"truth_nrmse": {"value": error + 0.035, "low": None, "high": None, "n": 8}}
    write_json(out / EVALUATION, {"ours": {"T1w": values}, "differences": {}, "about": about})
    (out / REPORT).write_text("<html></html>")
    return str(out)


@pytest.fixture
def evaluated(store: tuple[Config, str], tmp_path: Path) -> Config:
    """Champion and candidate evaluated; the candidate is better. The alias is where it was at first."""
    config, _ = store
    keep_with_model(CHAMPION, _evaluation(tmp_path / "champion", 0.40), config)
    keep_with_model(CANDIDATE, _evaluation(tmp_path / "candidate", 0.35), config)
    tracking.move_alias(CHAMPION, "champion")
    return config


def _champion(config: Config) -> str:
    return tracking.cite("models:/mmh-global@champion", config.tracking)[0]


def test_figures_and_files_are_with_the_version(evaluated: Config) -> None:
    client = mlflow.MlflowClient()
    version = client.get_model_version("mmh-global", "3")
    run = client.get_run(version.tags["mmh.evaluation"])
    assert run.data.metrics == {"evaluation.T1w.truth_nrmse": pytest.approx(0.385)}
    assert run.data.tags["mmh.model"] == CANDIDATE
    assert run.info.status == "FINISHED"
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("study", "same")
    assert mlflow.data.get_source(data.dataset).uri == "/data/study"
    [metric] = client.get_logged_model(version.source.removeprefix("models:/")).metrics
    assert (metric.key, metric.value) == ("evaluation.T1w.truth_nrmse", pytest.approx(0.385))
    assert (metric.dataset_name, metric.dataset_digest) == ("study", "same")
    uri, folder = tracking.evaluation_of("models:/mmh-global@candidate", evaluated.tracking)
    assert uri == CANDIDATE
    assert {path.name for path in folder.iterdir()} == {EVALUATION, PER_IMAGE, REPORT}


def test_a_better_model_takes_the_alias(evaluated: Config) -> None:
    decision = promote("models:/mmh-global@candidate", "champion", evaluated)
    assert decision.passed
    assert _champion(evaluated) == CANDIDATE
    assert f"mmh-global@champion was {CHAMPION} and is {CANDIDATE}" in decision.outcome
    assert decision.lines[0].startswith("T1w gradient corr. ↑: 0.980 against 0.980")
    again = promote(CANDIDATE, "champion", evaluated)
    assert (again.passed, again.outcome) == (False, f"not promoted: {CANDIDATE} is mmh-global@champion already")


def test_a_model_that_is_not_better_does_not_take_the_alias(evaluated: Config, tmp_path: Path) -> None:
    keep_with_model(SAME, _evaluation(tmp_path / "same", 0.40), evaluated)
    decision = promote(SAME, "champion", evaluated)
    assert not decision.passed
    assert "none of truth_nrmse is shown to be better" in decision.outcome
    assert _champion(evaluated) == CHAMPION


def test_other_images_and_no_evaluation_are_refused(evaluated: Config, tmp_path: Path) -> None:
    keep_with_model(SAME, _evaluation(tmp_path / "other", 0.1, data="other"), evaluated)
    with pytest.raises(DataError, match="on different images"):
        promote(SAME, "champion", evaluated)
    mlflow.MlflowClient().delete_model_version_tag("mmh-global", "2", "mmh.evaluation")
    with pytest.raises(ModelError, match=rf"{SAME}, which was not evaluated.*Run mmh evaluate"):
        promote(SAME, "champion", evaluated)
    with pytest.raises(ModelError, match="an alias of mmh-global"):
        promote(SAME, "nobody", evaluated)
    assert _champion(evaluated) == CHAMPION


def _scanned(root: Path) -> list[Case]:
    """Seven people at two sites, who differ in shape and whose scans differ in gamma; the truth beside them."""
    affine, mask, cases = np.diag([4.0, 4, 4, 1]), np.zeros((14, 15, 13), np.float32), []
    mask[2:-2, 2:-2, 2:-2] = 1
    write_volume(Volume(mask, affine), root / "mask.nii.gz")
    for i in range(7):
        truth = gaussian_filter(np.random.default_rng(i).normal(size=mask.shape), 1.2).argsort(axis=None).argsort()
        truth = (0.2 + 0.8 * truth.reshape(mask.shape) / mask.size).astype(np.float32)
        write_volume(Volume(truth, affine), root / f"truth/sub-{i}/anat/sub-{i}_desc-noisefree_T1w.nii.gz")
        records = []
        for site, gamma in (("a", 0.7), ("b", 1.5)):
            image_id = f"sub-{i}_ses-{site}_T1w"
            write_volume(Volume(300 * truth**gamma, affine), root / f"{image_id}.nii.gz")
            records.append(
                ImageRecord(
                    image_id,
                    str(i),
                    site,
                    "T1w",
                    uri=str(root / f"{image_id}.nii.gz"),
                    mask_uri=str(root / "mask.nii.gz"),
                    sha256="-",
                )
            )
        cases.append(Case(str(i), "T1w", tuple(records)))
    return cases


def _evaluated_for_real(root: Path, cases: list[Case], noise: float, config: Config, lost: int = 0) -> str:
    """What `mmh evaluate` does, without a cluster, for outputs that are the truth with that much noise."""
    out, truth = root / f"out{noise}{lost}", root / "truth"
    config = replace(config, evaluate=EvaluateConfig(draws=100, cnn="none"))
    scored = []
    for case in cases:
        clean = read_volume(truth / f"sub-{case.subject}/anat/sub-{case.subject}_desc-noisefree_T1w.nii.gz")
        records = []
        for record in case.records:
            rng = np.random.default_rng(int(case.subject))
            path = out / "images" / f"{record.image_id}.nii.gz"
            write_volume(clean.like((clean.data + rng.normal(0, noise, clean.data.shape)).astype(np.float32)), path)
            is_lost = lost and record is cases[0].records[0]
            records.append(replace(record, outputs={} if is_lost else {"ours": str(path)}))
        scored.append(replace(case, records=tuple(records)))
    settings = ScoringSettings(("raw", "ours"), {"T1w": {"raw": Raw()}}, str(truth), (2,))
    results = gather([score_case(case, settings).metrics for case in scored], "ours")
    more, _ = metrics_and_pictures("ours", results, (), 0, MetricRunner())
    metrics = mean_metrics(results) | more
    pq.write_table(images_table("ours", [image.record for image in results.images], metrics), out / PER_IMAGE)
    values, _ = entries_of(metrics, {}, config.evaluate)
    records = [record for case in cases for record in case.records]
    about = {"data_hash": data_hash(cases), "conditions": conditions(records, str(truth), config)}
    write_json(out / EVALUATION, {"ours": {"T1w": values}, "differences": {}, "about": about})
    (out / REPORT).write_text("<html></html>")
    return str(out)


def test_from_images_to_the_alias(store: tuple[Config, str], tmp_path: Path) -> None:
    config, cases = replace(store[0], promote=replace(PromoteConfig(), improve=("truth_nrmse",))), _scanned(tmp_path)
    tracking.move_alias(CHAMPION, "champion")
    keep_with_model(CHAMPION, _evaluated_for_real(tmp_path, cases, 0.08, config), config)
    keep_with_model(SAME, _evaluated_for_real(tmp_path, cases, 0.04, config, lost=1), config)
    lacking = promote(SAME, "champion", config)
    assert not lacking.passed
    assert (
        f"{SAME} was not scored on 1 of the 14 images that {CHAMPION} was scored on: sub-0_ses-a_T1w" in lacking.outcome
    )
    keep_with_model(CANDIDATE, _evaluated_for_real(tmp_path, cases, 0.04, config), config)
    decision = promote(CANDIDATE, "champion", config)
    assert decision.passed, (decision.outcome, decision.lines)
    assert _champion(config) == CANDIDATE
    back = promote(CHAMPION, "champion", config)
    assert not back.passed
    assert "none of truth_nrmse is shown to be better" in back.outcome


def test_the_ledger_must_name_the_model(store: tuple[Config, str], tmp_path: Path) -> None:
    config, bundle = store
    archives = {"raw": "bids", "ours": str(tmp_path)}
    row = dict.fromkeys(LEDGER_SCHEMA.names) | {"image_id": "a", "status": "done", "model_hash": bundle}
    write_ledger(tmp_path / LEDGER, [row])
    assert check_model("models:/mmh-global@candidate", archives, config) == CANDIDATE
    write_ledger(tmp_path / LEDGER, [row, row | {"image_id": "b", "model_hash": "other"}])
    with pytest.raises(ConfigError, match="made by another model"):
        check_model(CANDIDATE, archives, config)
    left = row | {"image_id": "b", "status": "failed", "output": "sub-b_T1w.nii.gz"}  # of an earlier run
    write_ledger(tmp_path / LEDGER, [row, left])
    write_sidecar(tmp_path / left["output"], {"Provenance": {"model_hash": bundle}})
    assert check_model(CANDIDATE, archives, config) == CANDIDATE
    write_sidecar(tmp_path / left["output"], {"Provenance": {"model_hash": "other"}})
    with pytest.raises(ConfigError, match="made by another model"):
        check_model(CANDIDATE, archives, config)
    write_ledger(tmp_path / LEDGER, [])
    with pytest.raises(ConfigError, match="made by an unknown model"):
        check_model(CANDIDATE, archives, config)
    with pytest.raises(ConfigError, match="without --archive ours=OUT"):
        check_model(CANDIDATE, {"raw": "bids"}, config)


def test_the_shipped_model_is_registered_once(store: tuple[Config, str], tmp_path: Path) -> None:
    config, _ = store
    first = tracking.register_shipped(config)
    assert first == "models:/mmh-base/1"
    assert tracking.register_shipped(config) == first
    folder, _ = tracking.resolve_model(first, config.tracking)
    shipped = shipped_bundle(BASE_MODEL)
    assert shipped is not None
    assert bundle_hash(folder) == bundle_hash(shipped)
    with pytest.raises(ConfigError, match="without --archive ours"):
        check_model(BASE_MODEL, {}, config)
