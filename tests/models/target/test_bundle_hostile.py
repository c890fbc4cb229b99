"""Untrusted targets: refused with the product's own error, before their curve or adapter is applied to an image."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mmh_ray.config import Config, StyleConfig, TargetConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.style.encoder import make_style_encoder
from mmh_ray.models.target.adapter import SiteStyle, attach, state_of
from mmh_ray.models.target.bundle import AGGREGATOR, FACTS, load_target, save_target, target_hash
from mmh_ray.models.target.fine_tuner import TunedAdapter

pytestmark = pytest.mark.fast

BASE = {"hash": "b" * 64, "uri": "models:/mmh-global/3"}
CONFIG = Config(target=TargetConfig(("alder",), rank=2))
STYLE = SiteStyle(np.linspace(0, 1, 64), np.linspace(0, 1, 64) ** 2, np.linspace(0, 1.3, 257), 0.03)
TRAINING = {"T1w": {"images": ["a", "b"]}, "style_encoder": {"backbone": "embedded"}}
WEIGHTS = "T1w.safetensors"


@pytest.fixture
def tuned(model: GlobalHarmonizer) -> TunedAdapter:
    attach(model, "one", 2)
    return TunedAdapter(state_of(model, "one"), {"loss": 0.25}, {"loss": 0.5}, 75)


@pytest.fixture
def folder(tuned: TunedAdapter, tmp_path: Path) -> Path:
    path = tmp_path / "alder"
    aggregator = make_style_encoder(StyleConfig(), 3.0).aggregator.state_dict()
    save_target(path, "alder", BASE, {"T1w": STYLE}, {"T1w": tuned}, CONFIG, TRAINING, aggregator)
    return path


def change(*keys: Any, to: Any) -> Callable[[Path], None]:
    """Change a value in the facts; ``...`` removes the key."""

    def act(folder: Path) -> None:
        facts = json.loads((folder / FACTS).read_text())
        tree = facts
        for key in keys[:-1]:
            tree = tree[key]
        if to is ...:
            del tree[keys[-1]]
        else:
            tree[keys[-1]] = to
        (folder / FACTS).write_text(json.dumps(facts))

    return act


def style(name: str, to: Any) -> Callable[[Path], None]:
    return change("sequences", "T1w", "style", name, to=to)


def scaled(name: str, factor: float) -> Callable[[Path], None]:
    return style(name, (factor * getattr(STYLE, name)).tolist())


def with_one(name: str, value: float, index: int = 7) -> Callable[[Path], None]:
    values = getattr(STYLE, name).copy()
    values[index] = value
    return style(name, values.tolist())


def weights(content: bytes) -> Callable[[Path], None]:
    """Other weights, with the checksum that belongs to them."""

    def act(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(content)
        change("sequences", "T1w", "weights_sha256", to=hashlib.sha256(content).hexdigest())(folder)

    return act


def spoilt_weights(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    next(iter(state.values())).view(-1)[3] = float("nan")
    weights(safetensors.torch.save(state))(folder)


def renamed(old: str, new: str) -> Callable[[Path], None]:
    """Another name of the sequence."""

    def act(folder: Path) -> None:
        facts = json.loads((folder / FACTS).read_text())
        facts["sequences"][new] = facts["sequences"].pop(old)
        (folder / FACTS).write_text(json.dumps(facts))

    return act


def away(name: str, there: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(there)

    return act


def pipe(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return act


NAN, INFINITE = float("nan"), float("inf")
HOSTILE = {
    # curves
    "levels x 10^30": scaled("site", 1e30),
    "levels x 10^3": scaled("site", 1e3),
    "knots x 10^30": scaled("unified", 1e30),
    "quantiles x 10^30": scaled("quantiles", 1e30),
    "levels upside down": scaled("site", -1),
    "NaN in the levels": with_one("site", NAN),
    "infinite levels": with_one("site", INFINITE),
    "NaN in the knots": with_one("unified", NAN),
    "NaN in the quantiles": with_one("quantiles", NAN),
    "a level out of order": with_one("site", 0.9),
    "a knot out of order": with_one("unified", 0.9),
    "two knots at one place": with_one("unified", float(STYLE.unified[6])),
    "two knots at one place in float32": with_one("unified", float(STYLE.unified[6]) + 1e-12),
    "quantiles that fall": with_one("quantiles", 1.2),
    "more knots than levels": style("unified", np.linspace(0, 1, 65).tolist()),
    "one knot": lambda folder: [style(name, [0.5])(folder) for name in ("unified", "site")],
    "no knots": lambda folder: [style(name, [])(folder) for name in ("unified", "site")],
    "10^5 knots": lambda folder: [
        style(name, np.linspace(0, 1, 10**5).tolist())(folder) for name in ("unified", "site")
    ],
    "quantiles too few": style("quantiles", [0.0, 1.0]),
    "knots in a table": style("unified", [STYLE.unified.tolist()]),
    "knots of text": style("unified", ["a"] * 64),
    "knots of lists": style("unified", [[0], [0, 1]] * 32),
    "knots that are text": style("unified", "0123"),
    "a knot of 400 digits": style("unified", [10**400, *STYLE.unified[1:].tolist()]),
    "noise NaN": style("noise", NAN),
    "noise below zero": style("noise", -0.1),
    "noise 10^30": style("noise", 1e30),
    "noise of text": style("noise", "loud"),
    "blur of 10^9 voxels": style("blur", 1e9),
    "blur below zero": style("blur", -1.0),
    "blur NaN": style("blur", NAN),
    "no noise": style("noise", ...),
    "a style with more": style("colour", 1),
    "a style that is a list": change("sequences", "T1w", "style", to=[1]),
    # adapters
    "NaN weights": spoilt_weights,
    "weights in double precision": weights(safetensors.torch.save({"a": torch.zeros(3, dtype=torch.float64)})),
    "weights that are no safetensors": weights(b"x" * 100),
    "rank 10^9": change("target", "rank", to=10**9),
    "rank of text": change("target", "rank", to="high"),
    "no rank": change("target", "rank", to=...),
    "numbers as text": style("unified", [str(value) for value in STYLE.unified]),
    "knots that are true": style("unified", [False, True] * 32),
    "no rank of ours": change("target", "rank", to=-4),
    "steps of text": change("sequences", "T1w", "steps", to="75"),
    "a damaged aggregator": lambda folder: (folder / AGGREGATOR).write_bytes(b"x" * 100) and None,
    # names and kinds
    "a sequence that leads elsewhere": renamed("T1w", "../T1w"),
    "a sequence with a slash": renamed("T1w", "a/T1w"),
    "a sequence without a name": renamed("T1w", ""),
    "a sequence named with a dot": renamed("T1w", "T1.w"),
    "a site that is a number": change("site", to=5),
    "a site without a name": change("site", to=""),
    "a site of two lines": change("site", to="north\nsouth"),
    "a site with a NUL": change("site", to="north\0"),
    "a site of 10^5 letters": change("site", to="x" * 10**5),
    "no base": change("base", to=...),
    "a base that is text": change("base", to="models:/mmh-global/3"),
    "a base without its hash": change("base", "hash", to=...),
    "a base whose hash is null": change("base", "hash", to=None),
    "a base whose hash is empty": change("base", "hash", to=""),
    "a base with more": change("base", "path", to="/etc"),
    "harmonize settings that are none": change("harmonize", "steps", to=10**9),
    "harmonize settings with more": change("harmonize", "timeout_s", to=1),
    "NaN in the restyling": change("restyle", "noise", to=NAN),
    "a fact that nobody knows": change("more", to=1),
    "sequences that are a list": change("sequences", to=["T1w"]),
    "a sequence that is text": change("sequences", "T1w", to="curve"),
    "training that is a list": change("training", to=[]),
    "a style encoder that is text": change("training", "style_encoder", to="hf-hub:some/body"),
    "a training nested deeply": change("training", "deep", to=json.loads("[" * 300 + "]" * 300)),
    "format true": change("format", to=True),
    "a global bundle's kind": change("kind", to="global"),
    # files
    "weights behind a link": away(WEIGHTS, f"../{WEIGHTS}"),
    "weights linked to /dev/zero": away(WEIGHTS, "/dev/zero"),
    "facts behind a link": away(FACTS, f"../{FACTS}"),
    "an aggregator linked to /dev/zero": away(AGGREGATOR, "/dev/zero"),
    "a dangling aggregator": away(AGGREGATOR, "nowhere"),
    "a pipe for weights": pipe(WEIGHTS),
    "a pipe for facts": pipe(FACTS),
    "a pipe for the aggregator": pipe(AGGREGATOR),
}


def test_an_unchanged_target_is_loaded(folder: Path) -> None:
    load_target(folder)


@pytest.mark.parametrize("act", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_target_is_refused_in_good_time(folder: Path, act: Callable[[Path], Any]) -> None:
    act(folder)
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        load_target(folder)
    assert time.process_time() - start < 5
    assert caught.value.expected
    assert caught.value.remedy
    assert len(str(caught.value)) < 3000


def test_refused_facts_have_no_hash(folder: Path) -> None:
    change("base", "hash", to=None)(folder)
    with pytest.raises(ModelError, match="base: hash=None"):
        target_hash(folder)


def test_the_backbone_recorded_in_a_target_is_never_downloaded(folder: Path) -> None:
    change("training", "style_encoder", to={"backbone": "hf-hub:some/body", "backbone_sha256": "0" * 64})(folder)
    target = load_target(folder, style=StyleConfig())
    with pytest.raises(ModelError, match="backbone_sha256"):
        target.encoder(StyleConfig(), 3.0)  # the caller's own, compared with what is recorded


def test_another_aggregator_is_refused(folder: Path) -> None:
    encoder = make_style_encoder(StyleConfig(), 3.0)
    change("training", "style_encoder", to=encoder.describe())(folder)
    (folder / AGGREGATOR).write_bytes(safetensors.torch.save({"query": torch.zeros(3)}))
    with pytest.raises(ModelError, match="an aggregator with other weights"):
        load_target(folder).encoder(StyleConfig(), 3.0)


@pytest.mark.parametrize("rank", [1, 256])
def test_an_adapter_of_another_rank_is_refused_before_it_is_made(
    folder: Path, model: GlobalHarmonizer, rank: int
) -> None:
    change("target", "rank", to=rank)(folder)
    target = load_target(folder)
    parameters = sum(1 for _ in model.parameters())
    with pytest.raises(ModelError, match=rf"for rank {rank}"):
        target.attach(SimpleNamespace(hash=BASE["hash"], model=model))  # type: ignore[arg-type]
    assert sum(1 for _ in model.parameters()) == parameters


def test_unicode_encodings_of_one_name_are_equal(folder: Path) -> None:
    change("site", to="Orle\u0301ans")(folder)
    assert load_target(folder).site == "Orl\u00e9ans"


def test_a_curve_or_an_adapter_that_diverged_is_not_saved(tuned: TunedAdapter, tmp_path: Path) -> None:
    flat = SiteStyle(STYLE.unified, np.full(64, np.nan), STYLE.quantiles, 0.0)
    with pytest.raises(ModelError, match=r"style of T1w for alder"):
        save_target(tmp_path / "a", "alder", BASE, {"T1w": flat}, {"T1w": tuned}, CONFIG, TRAINING)
    next(iter(tuned.state.values())).view(-1)[0] = float("inf")
    with pytest.raises(ModelError, match=r"adapter of T1w for alder.*lower target\.learning_rate"):
        save_target(tmp_path / "a", "alder", BASE, {"T1w": STYLE}, {"T1w": tuned}, CONFIG, TRAINING)
    assert list(tmp_path.iterdir()) == []
