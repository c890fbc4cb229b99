"""The targets of a batch job, without Ray."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmh_ray.config import Config
from mmh_ray.distributed.harmonize import harmonize, plan
from mmh_ray.errors import ModelError
from mmh_ray.harmonization import run
from mmh_ray.harmonization.job import Job
from mmh_ray.harmonization.run import target_domains
from mmh_ray.imaging.volume import Volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.models.target.adapter import SiteStyle
from mmh_ray.models.target.bundle import save_target
from mmh_ray.models.target.fine_tuner import TunedAdapter

pytestmark = pytest.mark.fast


def test_other_sampling_than_in_the_training_of_a_target_is_logged(
    tiny_bundle: Path, tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    style = SiteStyle(np.linspace(0, 1, 64), np.linspace(0, 1, 64), np.linspace(0, 1, 257), 0.0)
    curve_alone = TunedAdapter({}, {"loss": 1.0}, {"loss": 1.0}, 0)
    base, training = {"hash": load_bundle(tiny_bundle).hash, "uri": ""}, {"T1w": {"images": []}}
    save_target(tmp_path / "north", "north", base, {"T1w": style}, {"T1w": curve_alone}, tiny_config, training)
    job = Job("bids", "out", str(tiny_bundle), tiny_config, targets=(str(tmp_path / "north"),))
    target_domains(job, tiny_bundle, load_bundle(tiny_bundle))
    assert not caplog.messages
    other = replace(tiny_config, harmonize=replace(tiny_config.harmonize, steps=25, batch_slabs=1))
    target_domains(replace(job, config=other), tiny_bundle, load_bundle(tiny_bundle))
    assert caplog.messages == ["target north: trained with harmonize.steps=1, used with 25"]


def test_the_mask_of_a_reference_scan_comes_with_its_grid(
    tiny_bundle: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, mask = tmp_path / "sub-1_T1w.nii.gz", tmp_path / "mask.nii.gz"
    for path, size, spacing in ((scan, 4, 1.0), (mask, 2, 2.0)):
        data = np.arange(size**3, dtype=np.float32).reshape((size,) * 3)
        write_volume(Volume(data, np.diag([spacing] * 3 + [1])), path)
    given: list[Any] = []
    target = SimpleNamespace(site="ref", hash="h", attach=lambda _: None, sampling=lambda settings: settings)
    monkeypatch.setattr(run, "brain_mask_of", lambda *_: str(mask))
    monkeypatch.setattr(run, "target_of_scan", lambda *_, **found: given.append(found["mask"]) or target)
    job = Job("bids", "out", str(tiny_bundle), tiny_config, target_image=str(scan))
    target_domains(job, tiny_bundle, load_bundle(tiny_bundle))
    (laid,) = given
    assert np.allclose(laid.affine, np.diag([2.0, 2, 2, 1]))


@pytest.mark.parametrize("spoilt", ["model", "target"])
def test_a_run_with_a_damaged_model_or_target_ends_before_it_writes_anything(
    tiny_bundle: Path, tiny_config: Config, tmp_path: Path, spoilt: str
) -> None:
    scan = tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    write_volume(Volume(np.arange(64, dtype=np.float32).reshape(4, 4, 4), np.eye(4)), scan)
    model = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    style = SiteStyle(np.linspace(0, 1, 64), np.linspace(0, 1, 64), np.linspace(0, 1, 257), 0.0)
    curve_alone = TunedAdapter({}, {"loss": 1.0}, {"loss": 1.0}, 0)
    base, training = {"hash": load_bundle(model).hash, "uri": ""}, {"T1w": {"images": []}}
    save_target(tmp_path / "north", "north", base, {"T1w": style}, {"T1w": curve_alone}, tiny_config, training)
    facts = model / "config.json" if spoilt == "model" else tmp_path / "north" / "target.json"
    content = json.loads(facts.read_text())
    if spoilt == "model":
        content["schedule"] = "some/body"
    else:
        content["sequences"]["T1w"]["style"]["site"] = [1e30 * level for level in style.site]
    facts.write_text(json.dumps(content))
    out = tmp_path / "out"
    job = Job(str(tmp_path / "bids"), str(out), str(model), tiny_config, targets=(str(tmp_path / "north"),))
    for act in (harmonize, plan):
        with pytest.raises(ModelError, match=r"config\.json: schedule|target\.json: T1w"):
            act(job)
    assert not out.exists()
