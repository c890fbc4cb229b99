"""Models from strangers: facts and weights of global models and of targets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from mmh_ray.config import Config, GridConfig, ModelConfig, TargetConfig
from mmh_ray.models import bundle
from mmh_ray.models.bundle import bundle_files, bundle_hash, load_bundle, save_bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.target import bundle as target_bundle
from mmh_ray.models.target.adapter import SiteStyle, attach, state_of
from mmh_ray.models.target.bundle import load_target, save_target, target_hash
from mmh_ray.models.target.fine_tuner import TunedAdapter
from tests.fuzz.conftest import Guard
from tests.fuzz.mutations import Edit, as_json, byte_edits, edited, fuzz, reshaped, tree_edits

pytestmark = pytest.mark.slow

CONFIG = Config(
    model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2)),
    grid=GridConfig(spacing_mm=4.0, shape=(16, 24, 16)),
    target=TargetConfig(("alder",), rank=2),
)
QUANTILES = torch.linspace(0, 1, 257).repeat(2, 2, 1)
STYLE = SiteStyle(np.linspace(0, 1, 64), np.linspace(0, 1, 64) ** 2, np.linspace(0, 1.3, 257), 0.03)
TRAINING = {"T1w": {"images": ["a", "b"]}, "style_encoder": {"backbone": "embedded"}}
ADAPTER = "T1w.safetensors"


@dataclass(frozen=True)
class Good:
    """A good bundle's files, of which a failing test shows nothing."""

    facts: bytes = field(repr=False)
    weights: bytes = field(repr=False)


@pytest.fixture(scope="module")
def model(guard: Guard) -> Good:
    """A global model in the guard's folder."""
    folder = guard.folder / "model"
    untrained = GlobalHarmonizer(CONFIG.model, CONFIG.train, QUANTILES)
    save_bundle(folder, untrained, CONFIG, quantiles=QUANTILES, data_hash="d" * 64, training={"steps": 0})
    return Good((folder / bundle.FACTS).read_bytes(), (folder / bundle.WEIGHTS).read_bytes())


@pytest.fixture(scope="module")
def target(guard: Guard) -> Good:
    """A target in the guard's folder."""
    folder = guard.folder / "target"
    untrained = GlobalHarmonizer(CONFIG.model, CONFIG.train, QUANTILES)
    attach(untrained, "one", 2)
    tuned = TunedAdapter(state_of(untrained, "one"), {"loss": 0.25}, {"loss": 0.5}, 75)
    base = {"hash": "b" * 64, "uri": "models:/mmh-global/3"}
    save_target(folder, "alder", base, {"T1w": STYLE}, {"T1w": tuned}, CONFIG, TRAINING)
    return Good((folder / target_bundle.FACTS).read_bytes(), (folder / ADAPTER).read_bytes())


def reweighted(content: bytes, tensors: list[Edit], edits: list[Edit]) -> bytes:
    """A safetensors file after edits of its list of tensors, and of its bytes."""
    size = int.from_bytes(content[:8], "little")
    listed = as_json(reshaped(json.loads(content[8 : 8 + size]), tensors))
    return edited(len(listed).to_bytes(8, "little") + listed + content[8 + size :], edits)


def read_model(guard: Guard, facts: bytes, weights: bytes) -> None:
    folder = guard.folder / "model"
    (folder / bundle.FACTS).write_bytes(facts)
    (folder / bundle.WEIGHTS).write_bytes(weights)
    guard(lambda: load_bundle(folder), lambda: bundle_hash(folder), lambda: bundle_files(folder))


def read_target(guard: Guard, facts: bytes, weights: bytes) -> None:
    folder = guard.folder / "target"
    (folder / target_bundle.FACTS).write_bytes(facts)
    (folder / ADAPTER).write_bytes(weights)
    guard(lambda: load_target(folder), lambda: target_hash(folder))


@fuzz(facts=tree_edits(), edits=byte_edits(most=1))
def test_facts_of_models(guard: Guard, model: Good, facts: list[Edit], edits: list[Edit]) -> None:
    changed = as_json(reshaped(json.loads(model.facts), facts))
    read_model(guard, edited(changed, edits), model.weights)


@fuzz(share=0.25, tensors=tree_edits(), edits=byte_edits(most=2))
def test_weights_of_models(guard: Guard, model: Good, tensors: list[Edit], edits: list[Edit]) -> None:
    weights = reweighted(model.weights, tensors, edits)
    facts = json.loads(model.facts)
    facts["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    read_model(guard, as_json(facts), weights)


@fuzz(facts=tree_edits(), edits=byte_edits(most=1))
def test_facts_of_targets(guard: Guard, target: Good, facts: list[Edit], edits: list[Edit]) -> None:
    changed = as_json(reshaped(json.loads(target.facts), facts))
    read_target(guard, edited(changed, edits), target.weights)


@fuzz(tensors=tree_edits(), edits=byte_edits(most=2))
def test_weights_of_targets(guard: Guard, target: Good, tensors: list[Edit], edits: list[Edit]) -> None:
    weights = reweighted(target.weights, tensors, edits)
    facts = json.loads(target.facts)
    facts["sequences"]["T1w"]["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    read_target(guard, as_json(facts), weights)
