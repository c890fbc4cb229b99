"""Target bundles: loading returns what was saved; damage and another base model are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmh_ray.config import Config, HarmonizeConfig, RestyleConfig, StyleConfig, TargetConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.bundle import save_bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.style.encoder import make_style_encoder
from mmh_ray.models.target.adapter import SiteStyle, attach, state_of
from mmh_ray.models.target.bundle import FACTS, load_target, save_target, target_hash
from mmh_ray.models.target.fine_tuner import TunedAdapter

pytestmark = pytest.mark.fast

BASE = {"hash": "b" * 64, "uri": "models:/mmh-global/3"}
STYLE = SiteStyle(np.linspace(0, 1, 65), np.linspace(0, 1, 65) ** 2, np.linspace(0, 1, 257), 0.03)
CONFIG = Config(target=TargetConfig(rank=2))


@pytest.fixture
def tuned(model: GlobalHarmonizer) -> TunedAdapter:
    attach(model, "one", 2)
    return TunedAdapter(state_of(model, "one"), {"loss": 0.25}, {"loss": 0.5}, 75)


@pytest.fixture
def folder(tuned: TunedAdapter, tmp_path: Path) -> Path:
    save(tuned, tmp_path / "alder")
    return tmp_path / "alder"


def save(tuned: TunedAdapter, path: Path, config: Config = CONFIG, base: dict[str, str] = BASE) -> None:
    training = {"T1w": {"images": ["a", "b"], "validation_images": ["c"], "sources": ["d"]}, "style_encoder": {}}
    save_target(path, "alder", base, {"T1w": STYLE}, {"T1w": tuned}, config, training)


def test_what_is_loaded_is_what_was_saved(folder: Path, tuned: TunedAdapter) -> None:
    target = load_target(folder)
    assert (target.site, target.rank, target.uri) == ("alder", 2, folder.as_uri())
    assert target.hash == target_hash(folder)
    assert target.weights["T1w"].keys() == tuned.state.keys()
    assert all(torch.equal(value, tuned.state[key]) for key, value in target.weights["T1w"].items())
    for key, value in vars(STYLE).items():
        assert np.allclose(getattr(target.styles["T1w"], key), value)
    assert "| T1w | 2 | 75 | 0.5000 | 0.2500 |" in (folder / "MODEL_CARD.md").read_text()


def test_an_adapter_that_never_improved_costs_no_passes(tuned: TunedAdapter, folder: Path) -> None:
    save(replace(tuned, steps=0), folder)
    target = load_target(folder)
    assert not target.weights
    assert set(target.styles) == {"T1w"}


def test_the_same_training_has_the_same_hash_and_another_has_not(folder: Path, tuned: TunedAdapter) -> None:
    before = target_hash(folder)
    elsewhere = replace(CONFIG, target=replace(CONFIG.target, storage="s3://bucket"))
    save(replace(tuned, validation={"loss": 0.1}), folder, elsewhere, BASE | {"uri": "file:///models/global"})
    assert target_hash(folder) == load_target(folder).hash == before
    next(iter(tuned.state.values())).add_(1)
    save(tuned, folder)
    assert target_hash(folder) != before


def test_how_it_was_trained_is_recorded(folder: Path, tuned: TunedAdapter) -> None:
    few, many = HarmonizeConfig(batch_slabs=3), HarmonizeConfig(steps=25, fusion="median", planes=("axial",))
    assert load_target(folder).sampling(few) == few
    save(tuned, folder, replace(CONFIG, harmonize=many, restyle=RestyleConfig(gamma=0.3)))
    target = load_target(folder)
    assert target.sampling(few) == replace(many, batch_slabs=3)
    assert target.facts["restyle"]["gamma"] == 0.3
    zero_shot = replace(target, facts={"reference": "sub-1_T1w"})
    assert zero_shot.sampling(few) == few


def test_an_adapter_on_the_wrong_base_is_refused(folder: Path, model: GlobalHarmonizer) -> None:
    target = load_target(folder)
    with pytest.raises(ModelError, match=r"models:/mmh-global/3.*train the target on this one"):
        target.attach(SimpleNamespace(hash="c" * 64, model=model))  # type: ignore[arg-type]
    target.attach(SimpleNamespace(hash=BASE["hash"], model=model))  # type: ignore[arg-type]
    assert state_of(model, target.adapter("T1w"))


def test_a_target_accepts_only_its_own_style_encoder(tuned: TunedAdapter, tmp_path: Path) -> None:
    encoder = make_style_encoder(StyleConfig(), 3.0)
    with torch.no_grad():
        encoder.aggregator.query.add_(1)  # as if it had been trained for this target
    training = {"T1w": {"images": ["a"]}, "style_encoder": encoder.describe()}
    given = tmp_path / "alder", "alder", BASE, {"T1w": STYLE}, {"T1w": tuned}, CONFIG, training
    save_target(*given, encoder.aggregator.state_dict())
    found = load_target(tmp_path / "alder").encoder(StyleConfig(), 3.0)
    assert torch.equal(found.aggregator.query, encoder.aggregator.query)
    with pytest.raises(ModelError, match=r"slices 5 for 12.*train the adapter again"):
        load_target(tmp_path / "alder").encoder(StyleConfig(slices=5), 3.0)
    save_target(*given)  # whose aggregator was lost
    with pytest.raises(ModelError, match="aggregator_sha256"):
        load_target(tmp_path / "alder").encoder(StyleConfig(), 3.0)


def test_another_backbone_is_refused_by_name_alone(folder: Path, tuned: TunedAdapter, tmp_path: Path) -> None:
    training = {"T1w": {"images": ["a"]}, "style_encoder": {"backbone": "hf-hub:a/tower"}}
    given = "alder", BASE, {"T1w": STYLE}, {"T1w": tuned}, CONFIG, training
    save_target(tmp_path / "towers", *given)
    for backbone in ("hf-hub:a/tower", StyleConfig().backbone):  # the default asks for none
        assert load_target(tmp_path / "towers", style=StyleConfig(backbone=backbone)).styles
    with pytest.raises(ModelError, match=r"backbone='no/such'.*expected the recorded 'hf-hub:a/tower'.*Leave style"):
        load_target(tmp_path / "towers", style=StyleConfig(backbone="no/such"))
    assert load_target(folder, style=StyleConfig(backbone="no/such")).styles  # which records none


def test_an_adapter_is_small(tmp_path: Path) -> None:
    config, quantiles = Config(), torch.linspace(0, 1, 257).repeat(2, 2, 1)
    model = GlobalHarmonizer(config.model, config.train, quantiles)
    save_bundle(tmp_path / "base", model, config, quantiles=quantiles, data_hash="d" * 64, training={"steps": 0})
    attach(model, "one", config.target.rank)
    save(TunedAdapter(state_of(model, "one"), {"loss": 0.25}, {"loss": 0.5}, 75), tmp_path / "alder")
    target, base = (sum(path.stat().st_size for path in (tmp_path / name).iterdir()) for name in ("alder", "base"))
    assert target <= 0.05 * base


@pytest.mark.parametrize("damage", ["missing", "weights", "truncated", "format", "style"])
def test_damage_is_named(folder: Path, damage: str) -> None:
    weights, facts = folder / "T1w.safetensors", folder / FACTS
    content = json.loads(facts.read_text())
    if damage == "missing":
        weights.unlink()
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif damage == "truncated":
        facts.write_text(facts.read_text()[:50])
    elif damage == "format":
        facts.write_text(json.dumps(content | {"format": 99}))
    else:
        del content["sequences"]["T1w"]["style"]["unified"]
        facts.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=str(folder)):
        load_target(folder)


def test_a_folder_that_is_not_a_bundle_is_not_replaced(tuned: TunedAdapter, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with pytest.raises(ModelError, match="holds something else"):
        save(tuned, tmp_path / "precious")
    assert (tmp_path / "precious" / "file").exists()
