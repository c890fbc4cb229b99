"""The model bundle: loading returns what was saved, and errors of a damaged bundle say what is wrong."""

from __future__ import annotations

import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from mmh_ray.config import Config, GridConfig, HarmonizeConfig, ModelConfig
from mmh_ray.errors import ModelError
from mmh_ray.imaging.intensity import MonotoneMap
from mmh_ray.models.bundle import FACTS, WEIGHTS, bundle_hash, load_bundle, save_bundle
from mmh_ray.models.bundle_format import CARD
from mmh_ray.models.denoiser import Context
from mmh_ray.models.global_harmonizer import GlobalHarmonizer

pytestmark = pytest.mark.fast

CONFIG = Config(
    model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2)),
    grid=GridConfig(spacing_mm=4.0, shape=(16, 24, 16)),
    harmonize=HarmonizeConfig(steps=3),
)
QUANTILES = torch.linspace(0, 1, 257).repeat(2, 2, 1) * torch.tensor([[[1.0]], [[0.8]]])
TRAINING: dict[str, Any] = {
    "steps": 12,
    "validation": {"loss": 0.125},
    "counts": {"north": {"T1w": 5, "T2w": 4}, "south": {"T1w": 3}},
}


@pytest.fixture
def model() -> GlobalHarmonizer:
    """An untrained model whose unified domain has drifted from where it started."""
    model = GlobalHarmonizer(CONFIG.model, CONFIG.train, QUANTILES)
    model.domain_moments += 0.01
    return model


@pytest.fixture
def bundle(model: GlobalHarmonizer, tmp_path: Path) -> Path:
    """A bundle of the model."""
    return save(model, tmp_path / "bundle")


def save(model: GlobalHarmonizer, path: Path) -> Path:
    save_bundle(path, model, CONFIG, quantiles=QUANTILES, data_hash="d" * 64, training=TRAINING)
    return path


@torch.inference_mode()
def predict(model: GlobalHarmonizer) -> Tensor:
    """Output of the model for fixed noise."""
    noise, condition = torch.randn((1, 8, 16, 16), generator=torch.Generator().manual_seed(1)).split([1, 7], dim=1)
    one = torch.ones(1, dtype=torch.long)
    context = Context(one, one, torch.full((1,), 0.5), model.domain_moments[one])
    return model.denoiser(noise, 999 * one, condition, context)


def rewrite(path: Path, **changes: Any) -> None:
    """Change facts of a bundle."""
    facts = json.loads((path / FACTS).read_text())
    (path / FACTS).write_text(json.dumps(facts | changes))


def replace_weights(path: Path, content: bytes) -> None:
    """Other weights with the checksum that belongs to them."""
    (path / WEIGHTS).write_bytes(content)
    rewrite(path, weights_sha256=hashlib.sha256(content).hexdigest())


def test_a_loaded_model_predicts_what_the_saved_one_did(model: GlobalHarmonizer, bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert torch.equal(predict(loaded.model), predict(model.eval()))
    assert torch.equal(loaded.model.domain_cumulative, model.domain_cumulative)
    schedules: list[Any] = [loaded.model.scheduler, model.scheduler]
    assert torch.equal(*(schedule.alphas_cumprod for schedule in schedules))
    assert not loaded.model.training
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {torch.float32}


def test_levels_come_back_and_no_model_needs_them(model: GlobalHarmonizer, tmp_path: Path) -> None:
    without = save(model, tmp_path / "without")
    assert load_bundle(without).model.levels == {}
    curve = MonotoneMap(np.array([0.0, 0.2, 0.8]), np.array([0.0, 0.15, 0.95]))
    model.levels = {1: curve}
    with_levels = save(model, tmp_path / "with")
    loaded = load_bundle(with_levels).model.levels
    assert loaded.keys() == {1}
    np.testing.assert_array_equal(loaded[1].source, curve.source)
    np.testing.assert_array_equal(loaded[1].target, curve.target)
    assert bundle_hash(with_levels) != bundle_hash(without)


def test_a_model_can_be_loaded_in_the_background(model: GlobalHarmonizer, bundle: Path) -> None:
    with ThreadPoolExecutor(max_workers=1) as background:
        loaded = load_bundle(bundle, background=background)
        assert loaded.config.grid == CONFIG.grid
        assert torch.equal(predict(loaded.model), predict(model.eval()))


def test_a_damaged_model_loaded_in_the_background_fails_at_first_use(bundle: Path) -> None:
    (bundle / WEIGHTS).write_bytes(b"damaged")
    with ThreadPoolExecutor(max_workers=1) as background:
        loaded = load_bundle(bundle, background=background)
        with pytest.raises(ModelError, match=r"checksum|bytes"):
            _ = loaded.model


def test_settings_and_facts_come_back(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    for section in ("model", "grid", "prepare", "harmonize", "train"):
        assert getattr(loaded.config, section) == getattr(CONFIG, section)
    assert torch.equal(loaded.quantiles, QUANTILES)
    assert loaded.facts["training"] == TRAINING
    assert loaded.facts["data_hash"] == "d" * 64
    assert loaded.facts["sequences"] == ["T1w", "T2w"]


def test_a_bfloat16_model_is_stored_in_float32(model: GlobalHarmonizer, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(save(model.bfloat16(), tmp_path / "half") / WEIGHTS)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_the_hash_changes_with_a_weight_and_only_then(model: GlobalHarmonizer, bundle: Path, tmp_path: Path) -> None:
    before = load_bundle(bundle).hash
    assert load_bundle(save(model, tmp_path / "again")).hash == bundle_hash(bundle) == before
    (bundle / CARD).write_text("words")
    assert bundle_hash(bundle) == before
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1e-6
    assert load_bundle(save(model, tmp_path / "changed")).hash != before


def test_loading_leaves_the_random_state_alone(bundle: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_bundle(bundle)
    assert torch.equal(torch.rand(4), expected)


def test_an_earlier_bundle_is_replaced_without_leftovers(model: GlobalHarmonizer, bundle: Path) -> None:
    before = bundle_hash(bundle)
    with torch.no_grad():
        next(model.parameters()).zero_()
    save(model, bundle)
    assert bundle_hash(bundle) != before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert sorted(path.name for path in bundle.iterdir()) == sorted([FACTS, WEIGHTS, CARD])


def test_a_failed_save_leaves_the_earlier_bundle_whole(model: GlobalHarmonizer, bundle: Path) -> None:
    before = bundle_hash(bundle)
    with pytest.raises(ValueError, match="Out of range float"):
        save_bundle(
            bundle, model, CONFIG, quantiles=QUANTILES, data_hash="", training={"validation": {"loss": float("nan")}}
        )
    assert load_bundle(bundle).hash == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_folder_that_is_not_a_bundle_is_not_replaced(model: GlobalHarmonizer, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="holds something else; expected a new folder"):
        save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_sequences_are_known_by_their_suffix(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert [loaded.sequence_index(name) for name in ("T1w", "T2w")] == [0, 1]
    with pytest.raises(ModelError, match="sequence 'FLAIR'; expected one of T1w, T2w"):
        loaded.sequence_index("FLAIR")


def test_the_card_tells_counts_purpose_and_limits(bundle: Path) -> None:
    card = (bundle / CARD).read_text()
    for expected in (
        "| north | 5 | 4 |",
        "| south | 3 | 0 |",
        "loss: 0.125",
        "research",
        "refused",
        "4 mm",
        "16 x 24 x 16",
    ):
        assert expected in card


def test_a_missing_folder_and_missing_parts_are_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: no such folder; expected a model bundle"):
        load_bundle(tmp_path / "nowhere")
    for name in (WEIGHTS, FACTS):
        (bundle / name).unlink()
        with pytest.raises(ModelError, match=rf"{name}: No such file .* Copy the bundle again"):
            load_bundle(bundle)


def test_facts_that_are_not_json_are_refused(bundle: Path) -> None:
    (bundle / FACTS).write_bytes((bundle / FACTS).read_bytes()[:100])
    with pytest.raises(ModelError, match=r"config\.json: not JSON"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, r"'format': 99.*expected a model bundle with .*'format': 7.*Use the release"),
        ({"kind": "target"}, r"'kind': 'target'"),
        ({"config": {"model": {"colour": 1}}}, r"unknown key model\.colour.*Use the release of mmh-ray that wrote it"),
        ({"unified_domain": {"T1w": [0.0, 1.0]}}, r"KeyError: 'T2w'"),
        ({"unified_domain": {"T1w": [0.0, 1.0], "T2w": [0.0]}}, r"ValueError"),
    ],
)
def test_facts_of_another_kind_or_version_are_refused(bundle: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(bundle, **changes)
    with pytest.raises(ModelError, match=message):
        load_bundle(bundle)


def test_missing_facts_are_named(bundle: Path) -> None:
    (bundle / FACTS).write_text(json.dumps({"format": 7, "kind": "global", "config": {}}))
    with pytest.raises(
        ModelError,
        match="without code_version, data_hash, levels, schedule, sequences, training, unified_domain, weights_sha256",
    ):
        load_bundle(bundle)


def test_one_flipped_bit_of_the_weights_is_noticed(bundle: Path) -> None:
    content = bytearray((bundle / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (bundle / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match=r"denoiser\.safetensors: damaged"):
        load_bundle(bundle)


def test_weights_are_never_unpickled(bundle: Path, tmp_path: Path) -> None:
    replace_weights(bundle, pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelError, match=r"denoiser\.safetensors: unreadable"):
        load_bundle(bundle)
    assert not (tmp_path / "exploded").exists()


class _Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_with_other_names_do_not_fit(bundle: Path) -> None:
    state = safetensors.torch.load_file(bundle / WEIGHTS)
    state["surprise"] = state.pop("domain_moments")
    replace_weights(bundle, safetensors.torch.save(state))
    with pytest.raises(ModelError, match=r"domain_moments.*surprise.*expected the parameters of the model section"):
        load_bundle(bundle)


def test_weights_of_another_shape_do_not_fit(bundle: Path) -> None:
    facts = json.loads((bundle / FACTS).read_text())
    facts["config"]["model"]["channels"] = [16, 16]
    rewrite(bundle, config=facts["config"])
    with pytest.raises(ModelError, match="size mismatch"):
        load_bundle(bundle)
