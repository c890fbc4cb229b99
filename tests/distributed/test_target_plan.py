"""What adapters are trained from, and what becomes of sites when one fails; without Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import save_file

from mmh_ray.config import Config, StyleConfig, TargetConfig
from mmh_ray.distributed import style_encoder, train_target
from mmh_ray.distributed.evaluate_target import _describer, _summaries
from mmh_ray.distributed.style_encoder import StyleDescriber, chosen, learn_aggregator
from mmh_ray.distributed.train_target import TrainedTarget, plan_site, train_targets
from mmh_ray.errors import ConfigError, DataError, ModelError
from mmh_ray.evaluation.target import METHODS, RAW, TargetCase
from mmh_ray.models.style import make_style_encoder
from mmh_ray.models.target_bundle import save_target

pytestmark = pytest.mark.fast

SHAPE = (16, 16, 16)


def entry(site: str, number: int, split: str = "train") -> dict[str, Any]:
    """Index row of a store."""
    about = {"image_id": f"sub-{site}{number}_T1w", "site": site, "sequence": "T1w", "split": split}
    return about | {"status": "ok", "shape": SHAPE}


@pytest.fixture
def bundle() -> Any:
    """What planning asks of the global model."""
    config = replace(Config(), grid=replace(Config().grid, shape=SHAPE))
    return SimpleNamespace(config=config)


def store(travelers: int = 2) -> Any:
    """Three images of the target, which is all there is of it, and four of each of two other sites."""
    rows = [entry("north", number) for number in range(3)]
    rows += [entry(site, number) for site in ("south", "west") for number in range(4)]
    return SimpleNamespace(uri="store", index=rows + [entry("north", 100 + n, "test") for n in range(travelers)])


def test_nobody_is_trained_and_validated_on(bundle: Any) -> None:
    (task,) = plan_site(store(), "north", bundle, Config())
    parts = task.as_facts()
    assert [len(parts[name]) for name in parts] == [2, 1, 6, 2]
    names = [name for part in parts.values() for name in part]
    assert len(set(names)) == len(names)


def test_travelers_decide_nothing(bundle: Any) -> None:
    assert plan_site(store(2), "north", bundle, Config()) == plan_site(store(0), "north", bundle, Config())


def test_the_seed_draws_the_images(bundle: Any) -> None:
    many = store()
    many.index += [entry("north", 10 + number) for number in range(20)]

    def drawn(seed: int) -> list[str]:
        (task,) = plan_site(many, "north", bundle, Config(target=TargetConfig(images=5, seed=seed)))
        return [row["image_id"] for row in (*task.training, *task.validation)]

    assert [len(drawn(seed)) for seed in range(3)] == [5, 5, 5]
    assert drawn(0) == drawn(0) != drawn(1)


def test_one_source_image_does_not_do(bundle: Any) -> None:
    few = store()
    few.index = [row for row in few.index if row["site"] == "north" or row["image_id"] == "sub-south0_T1w"]
    with pytest.raises(DataError, match="two of other sites"):
        plan_site(few, "north", bundle, Config())


def test_sites_of_one_name_are_refused(tmp_path: Path) -> None:
    config = Config(target=TargetConfig(("a b", "a-b"), storage=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"sites 'a b' and 'a-b', both mmh-target-a-b"):
        train_targets("store", "model", config)
    place = tmp_path / "targets" / "a-b"
    place.mkdir(parents=True)
    (place / "precious").touch()
    config = replace(config, target=replace(config.target, site=("a b",)))
    with pytest.raises(ConfigError, match="no target"):
        train_targets("store", "model", config)
    (place / "target.json").write_text('{"site": "a-b"}')
    with pytest.raises(ConfigError, match="target of site 'a-b'"):
        train_targets("store", "model", config)


def test_a_site_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Any) -> None:
    ended: dict[str, str] = {}
    tracking = SimpleNamespace(
        resolve_model=lambda *_: (tmp_path, "models:/mmh-global/1"),
        configure=lambda *_: None,
        start_run=lambda _config, name, *_: name,
        finish=lambda run, status="FINISHED": ended.setdefault(run, status),
        target_model_name=lambda site: f"mmh-target-{site}",
    )
    aggregated: list[Any] = []
    store_of = store()
    store_of.index.append(entry("west", 9) | {"sequence": "FLAIR"})
    published = lambda site, *_: TrainedTarget(site, "", f"models:/mmh-target-{site}/1", "", {})  # noqa: E731
    stand_ins = {
        "tracking": tracking,
        "connect": lambda: None,
        "PreparedStore": lambda _: SimpleNamespace(**vars(store_of), data_hash="d"),
        "aggregator_for": lambda _store, rows, *_: aggregated.extend(rows),
        "bundle_hash": lambda _: "b",
        "load_bundle": lambda _: bundle,
        "_publish": published,
        "_run": lambda tasks, *_: [(task, ValueError("burst") if task.site == "south" else None) for task in tasks],
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(train_target, name, value)
    config = Config(target=TargetConfig(("south", "north"), storage=str(tmp_path)))
    with pytest.raises(ModelError, match=r"target south: burst.*models:/mmh-target-north/1.*target.site=\[south\]"):
        train_targets("store", "model", config)
    assert ended == {"target-south": "FAILED"}  # _publish ends the other's
    assert {row["sequence"] for row in aggregated} == {"T1w"}  # FLAIR is none of the model's
    with pytest.raises(ValueError, match="burst"):
        train_targets("store", "model", replace(config, target=replace(config.target, site=("south",))))


def test_the_aggregator_learns_from_styles_and_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(len(row["image_id"]) + int(row["image_id"][-5]))
        image = rng.uniform(0.2, 1, SHAPE).astype(np.float32)
        return image ** (2 if row["site"] == "south" else 1), np.ones(SHAPE, bool)

    monkeypatch.setattr(style_encoder, "PreparedStore", lambda _: SimpleNamespace(read=read))
    rows = chosen(store().index)
    assert {row["split"] for row in rows} == {"train"}
    assert len(rows) == 11
    config = Config(style=StyleConfig(slices=2, steps=20))
    trained = learn_aggregator("store", rows[:3] + rows[5:8], config, 3.0)
    assert trained.figures["contrast"] < trained.figures["contrast_before"]
    assert trained.figures["spread"] >= 0.05
    plain = make_style_encoder(config.style, 3.0)
    learned = make_style_encoder(config.style, 3.0, trained.state)
    assert not torch.equal(learned.aggregator.query, plain.aggregator.query)
    image, affine = read(rows[0])[0], np.diag([3.0, 3, 3, 1])
    one, other = (StyleDescriber(config.style, state)(image, image > 0, affine) for state in ({}, trained.state))
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(one, other, atol=1e-3)


def test_a_target_of_another_tower_is_evaluated_with_its_own_aggregator(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder in (one, other):
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision}))
        save_file(_build_vision_tower(8, vision).state_dict(), folder / "open_clip_model.safetensors")
    config = Config(style=StyleConfig(backbone=str(one), slices=2))
    encoder = make_style_encoder(config.style, 3.0)
    torch.nn.init.normal_(encoder.aggregator.plane)  # as if it had been trained
    training, base = {"style_encoder": encoder.describe()}, {"hash": "b" * 64, "uri": "models:/mmh-global/1"}
    save_target(tmp_path / "north", "north", base, {}, {}, config, training, encoder.aggregator.state_dict())
    made = {"URI": (tmp_path / "north").as_uri(), "training": training}
    (tmp_path / "sub-1_T1w.json").write_text(json.dumps({"TargetModel": made}))
    case = TargetCase("1", "T1w", {}, ({"target": str(tmp_path / "sub-1_T1w.nii.gz")},))
    image, affine = rng.uniform(0.2, 1, SHAPE).astype(np.float32), np.diag([3.0, 3, 3, 1])
    found, plain = (
        describe(image, image > 0, affine) for describe in (_describer([case], config), StyleDescriber(config.style))
    )
    wanted = StyleDescriber(config.style, encoder.aggregator.state_dict())(image, image > 0, affine)
    assert np.array_equal(found, wanted)
    assert not np.allclose(found, plain, atol=1e-3)
    for backbone in (str(other), "embedded"):
        with pytest.raises(ModelError, match=r"style encoder .*backbone_sha256.* for "):
            _describer([case], Config(style=StyleConfig(backbone=backbone, slices=2)))


def test_what_cannot_be_had_is_none_and_the_rest_is_the_mean() -> None:
    def row(name: str, subject: int, site: str, **more: float) -> dict[str, Any]:
        style = np.array([site == "a", site == "b"]) + 0.01 * subject
        about = {"image_id": f"{site}{subject}", "subject": str(subject), "site": site, "method": name}
        return about | {"psnr": 20.0 + subject, "ssim": 0.5, "gradient_correlation": 1.0} | {"style": style} | more

    slices = {"slices": None}
    raw = [row(RAW, subject, site, w1=0.2) | slices for subject in range(4) for site in "ab"]
    ours = [row("target_harmonized", subject, "a", w1=0.05) | slices for subject in range(3)]
    bad = {"image_id": "a9", "subject": "9", "site": "a", "reason": "unreadable"}
    found = {("T1w", RAW): [*raw, bad], ("T1w", "target_harmonized"): ours}
    summaries = _summaries(found, "T1w")
    assert tuple(summaries) == METHODS
    assert (summaries[RAW]["scans"], summaries[RAW]["failed"]) == (8, 1)
    assert summaries[RAW]["psnr"] == pytest.approx(21.5)
    assert summaries[RAW]["site_probe_style"] == 1.0
    assert summaries[RAW]["site_probe_chance"] == 0.5
    assert summaries["target_harmonized"]["w1_of_raw"] == pytest.approx(0.25)
    assert summaries["target_harmonized"]["site_probe_style"] is None  # one site is no question
    assert summaries["target_nyul"]["psnr"] is None
