"""A target from one scan: its contrast and its sharpness are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from mmh_ray.config import Config, GridConfig, HarmonizeConfig, ModelConfig, PrepareConfig
from mmh_ray.harmonization import reference_target
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.reference_target import SHARPNESS, target_of_scan
from mmh_ray.imaging.preprocess import prepare_volume
from mmh_ray.imaging.volume import Volume
from mmh_ray.models.bundle import load_bundle, save_bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

pytestmark = pytest.mark.slow

CONFIG = Config(
    grid=GridConfig(4.0, (48, 56, 48)),
    prepare=PrepareConfig(n4=False, register=False),
    model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2)),
    harmonize=HarmonizeConfig(planes=("axial",)),
)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return simulate_anatomy(Person(3), 4.0)


@pytest.fixture
def harmonizer(anatomy: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harmonizer:
    """A harmonizer whose model returns the answer: the noise-free image."""
    quantiles = torch.linspace(0, 1, 257).repeat(2, 2, 1)
    model = GlobalHarmonizer(CONFIG.model, CONFIG.train, quantiles)
    save_bundle(tmp_path / "bundle", model, CONFIG, quantiles=quantiles, data_hash="d" * 64, training={"steps": 0})
    known = Volume(canonical(anatomy, "T1w", 4.0), anatomy.affine)
    unified = prepare_volume(known, anatomy.brain, CONFIG.grid, CONFIG.prepare).image
    monkeypatch.setattr(Harmonizer, "sample_planes", lambda *_: unified[None])
    return Harmonizer(load_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_contrast_and_sharpness_of_the_reference_are_found(
    harmonizer: Harmonizer, anatomy: Anatomy, sigma: float
) -> None:
    look = canonical(anatomy, "T1w", 4.0) ** 1.6
    look = ndimage.gaussian_filter(look, sigma) if sigma else look
    target = target_of_scan(harmonizer, Volume(look, anatomy.affine), "T1w", "ref", "s" * 64, anatomy.brain)
    style = target.styles["T1w"]
    assert style.blur == pytest.approx(sigma, abs=0.4)
    levels = torch.linspace(0.75, 0.95, 5)  # of grey and white matter
    assert torch.allclose(style.apply(levels), levels**1.6, atol=0.1)
    assert target.site == "ref"
    assert not target.weights


def test_a_mask_on_another_grid_is_laid_on_the_scan(harmonizer: Harmonizer, anatomy: Anatomy) -> None:
    scan, brain = Volume(canonical(anatomy, "T1w", 4.0) ** 1.6, anatomy.affine), anatomy.brain.astype(np.float32)
    moved = anatomy.affine.copy()
    moved[:3, 3] -= 2 * moved[:3, 0]
    masks = (
        anatomy.brain,
        Volume(np.roll(brain, 2, axis=0), moved),
        Volume(np.pad(brain, ((2, 0), (0, 0), (0, 0))), moved),
    )
    targets = [target_of_scan(harmonizer, scan, "T1w", "ref", "s" * 64, mask) for mask in masks]
    assert len({target.hash for target in targets}) == 1
    assert targets[0].facts["reference_mask_sha256"] is not None
    other = target_of_scan(harmonizer, scan, "T1w", "ref", "s" * 64, np.roll(anatomy.brain, 2, axis=0))
    assert other.facts["reference_mask_sha256"] != targets[0].facts["reference_mask_sha256"]


class Preference:
    """A style encoder for which the first, or the last, of the compared images is nearest to the reference."""

    def __init__(self, last: bool) -> None:
        self.last, self.asked, self.affine, self.planes = last, 0, np.eye(4), torch.zeros(0)

    def planes_of(self, affine: np.ndarray) -> torch.Tensor:
        self.affine = affine
        return torch.tensor([[True, False, False]])

    def describe(self) -> dict[str, str]:
        return {"backbone": "preference"}

    def __call__(self, volumes: torch.Tensor, masks: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        self.planes, self.asked = planes, self.asked + 1
        angle = torch.tensor([1 / (1 + self.asked) if self.last else 0.1 * self.asked, 0.0])
        return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.mark.parametrize(("last", "blur"), [(False, SHARPNESS[0]), (True, SHARPNESS[1])])
def test_style_decides_between_point_spreads_that_explain_the_scan_alike(
    harmonizer: Harmonizer, anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch, last: bool, blur: float
) -> None:
    encoder = Preference(last)
    monkeypatch.setattr(reference_target, "make_style_encoder", lambda *_: encoder)
    soft = ndimage.gaussian_filter(Harmonizer.sample_planes(harmonizer, None, 0), (0, 4, 4, 4))
    monkeypatch.setattr(Harmonizer, "sample_planes", lambda *_: soft)
    scan = Volume(canonical(anatomy, "T1w", 4.0) ** 1.6, anatomy.affine)
    found = target_of_scan(harmonizer, scan, "T1w", "ref", "s" * 64, anatomy.brain)
    assert encoder.asked == 2  # the other four leave more than the best two
    assert found.styles["T1w"].blur == blur
    assert np.array_equal(encoder.affine, anatomy.affine)
    assert encoder.planes.tolist() == [[True, False, False]] * 2
