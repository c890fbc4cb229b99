"""On a real GPU: both stages train and harmonize, its images are the CPU's, and memory that runs out costs no image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mmh_ray.bids.ledger import read_ledger
from mmh_ray.config import Config, ManifestConfig, ModelConfig, PhantomConfig, TargetConfig, TrackingConfig, TrainConfig
from mmh_ray.distributed.harmonize import harmonize
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.distributed.prepare import prepare
from mmh_ray.distributed.train import train_global
from mmh_ray.distributed.train_target import train_targets
from mmh_ray.harmonization.job import Job, ModelIdentity
from mmh_ray.harmonization.target_domain import TargetDomain
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.models.bundle import load_bundle
from mmh_ray.models.sampling import harmonize_volume
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("default"),
]

SITE = "alder"


@pytest.fixture(scope="module")
def wide(make_bundle: Callable[[Config], Path], tiny_config: Config) -> tuple[Path, Config]:
    """Bundle and settings of an untrained network whose batches are most of its memory."""
    config = replace(
        tiny_config,
        model=ModelConfig(channels=(32, 64), slab=1, distances=(1, 2), patch=1),
        harmonize=replace(tiny_config.harmonize, batch_slabs=64),
    )
    return make_bundle(config), config


@pytest.fixture
def phantom() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, mask and affine of a brain."""
    anatomy = simulate_anatomy(Person(1), 6.0)
    image = canonical(anatomy, "T1w", 6.0).astype(np.float32)
    return image, image > 0, anatomy.affine


@pytest.fixture
def _memory() -> Iterator[None]:
    """All memory again after the test."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_an_image_is_the_same_as_on_the_cpu(
    wide: tuple[Path, Config], phantom: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    image, mask, _ = phantom
    made = [
        harmonize_volume(load_bundle(wide[0], device).model, image, mask, 0, wide[1].harmonize)
        for device in ("cpu", "cuda")
    ]
    assert np.ptp(made[0][mask]) > 0.1
    np.testing.assert_allclose(made[1], made[0], atol=5e-3)  # convolutions in TF32


@pytest.mark.usefixtures("_memory")
def test_batches_shrink_until_they_fit_into_the_gpu(
    wide: tuple[Path, Config], phantom: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    image, _, affine = phantom
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "sub-01_T1w.nii.gz")
    row = {"image_id": "sub-01_T1w", "uri": str(tmp_path / "sub-01_T1w.nii.gz"), "site": "north", "sequence": "T1w"}
    row |= {"mask_uri": None, "status": "ok", "reason": None, "earlier": {}}
    files = {path.name: path.read_bytes() for path in wide[0].iterdir()}
    outputs, batches = [], []
    for name in ("plenty", "scarce"):
        unified = TargetDomain(None, "b" * 64)
        model = ModelIdentity("models:/m/1", "a" * 64)
        worker = HarmonizeWorker(files, wide[1], str(tmp_path / name), model, [unified])
        assert next(worker.harmonizer.bundle.model.parameters()).is_cuda
        (found,) = worker.harmonize(row)
        assert found["status"] == "done", found["reason"]
        outputs.append(nib.load(tmp_path / name / found["output"]).get_fdata())
        batches.append(worker.harmonizer.settings.batch_slabs)
        peak, whole = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
        del worker
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.5 * peak / whole)
    assert batches[0] == 64
    assert 1 <= batches[1] < 64
    np.testing.assert_allclose(outputs[1], outputs[0], atol=5e-3 * outputs[0].max())


@pytest.mark.ray
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_stages_train_and_harmonize(
    precision: str, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    common = {"steps": 4, "slabs_per_plane": 1, "validate_every": 2, "storage": str(tmp_path / "runs")}
    config = replace(
        tiny_config,
        phantom=PhantomConfig(sites=2, subjects_per_site=4, travelers=1, spacing_mm=6),
        manifest=ManifestConfig(val_fraction=0.25, test_fraction=0),
        train=TrainConfig(use_gpu=True, precision=precision, warmup_steps=2, **common),
        target=TargetConfig((SITE,), images=3, **common),
        tracking=TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}"),
    )
    bids, manifest, store, out = (str(tmp_path / name) for name in ("bids", "manifest.parquet", "prepared", "out"))
    make_archive(bids, config.phantom)
    build_manifest(bids, manifest, config)
    prepare(manifest, store, config)
    model = train_global(store, config).bundle
    (target,) = train_targets(store, model, config)
    counts = harmonize(Job(bids, out, model, config, targets=(target.bundle,)))
    ledger = read_ledger(tmp_path / "out" / "ledger.parquet")
    assert set(counts) == {"done"}, [row["reason"] for row in ledger if row["reason"]]
    assert all(np.isfinite(nib.load(Path(out, row["output"])).get_fdata()).all() for row in ledger)
