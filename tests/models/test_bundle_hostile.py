"""Untrusted bundles: each is refused with the product's own error.

This happens quickly, without using the network, and with little memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mmh_ray.config import Config, GridConfig, ModelConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.bundle import FACTS, SECTIONS, WEIGHTS, bundle_files, bundle_hash, load_bundle, save_bundle
from mmh_ray.models.bundle_files import MOST_FACTS
from mmh_ray.models.bundle_format import CARD
from mmh_ray.models.global_harmonizer import GlobalHarmonizer

pytestmark = pytest.mark.fast

CONFIG = Config(
    model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2)), grid=GridConfig(spacing_mm=4.0, shape=(16, 24, 16))
)
QUANTILES = torch.linspace(0, 1, 257).repeat(2, 2, 1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a good bundle."""
    folder = tmp_path_factory.mktemp("original") / "bundle"
    model = GlobalHarmonizer(CONFIG.model, CONFIG.train, QUANTILES)
    save_bundle(folder, model, CONFIG, quantiles=QUANTILES, data_hash="d" * 64, training={"steps": 0})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def bundle(original: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle; any use of a network fails."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a bundle asks for a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, content in original.items():
        (folder / name).write_bytes(content)
    return folder


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FACTS).read_text())


def put(tree: Any, keys: tuple[Any, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    if value is ...:
        del tree[keys[-1]]
    else:
        tree[keys[-1]] = value


def change(*keys: Any, to: Any) -> Callable[[Path], None]:
    """Change a value in the facts; ``...`` removes the key."""

    def act(folder: Path) -> None:
        facts = facts_of(folder)
        put(facts, keys, to)
        (folder / FACTS).write_text(json.dumps(facts))

    return act


def reweighted(act: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Replace the weights and their checksum."""

    def change_weights(folder: Path) -> None:
        state = safetensors.torch.load_file(folder / WEIGHTS)
        found = act(state)
        raw(safetensors.torch.save(found if isinstance(found, dict) else state))(folder)

    return change_weights


def raw(content: bytes) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(content)
        change("weights_sha256", to=hashlib.sha256(content).hexdigest())(folder)

    return act


def spoil(name: str, value: float, *index: int) -> Callable[[Path], None]:
    """Change one number of the model's statistics."""
    return reweighted(lambda state: state[name].__setitem__(index, value))


def text(content: str | bytes) -> Callable[[Path], None]:
    """Replace all facts."""

    def act(folder: Path) -> None:
        (folder / FACTS).write_bytes(content if isinstance(content, bytes) else content.encode())

    return act


def linked(name: str, there: str) -> Callable[[Path], None]:
    """Replace a file by a link; ``there`` is relative to the bundle."""

    def act(folder: Path) -> None:
        away = folder.parent / "away"
        away.mkdir()
        (folder / name).rename(away / name)
        (folder / name).symlink_to(there.format(name=name))

    return act


def pipe(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return act


def header(entries: dict[str, Any], body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, written by hand."""
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + body


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HUGE = {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}
HOSTILE = {
    # names that would query a hub or read another folder
    "schedule is a name": change("schedule", to="google/ddpm-cat-256"),
    "schedule is a folder": change("schedule", to="../other"),
    "schedule is a list": change("schedule", to=[["beta_start", 1]]),
    "schedule is empty": change("schedule", to={}),
    "schedule of 10^9 steps": change("schedule", "num_train_timesteps", to=10**9),
    "schedule with a name for a number": change("schedule", "beta_start", to="google/ddpm-cat-256"),
    "schedule of other betas": change("schedule", "beta_end", to=0.5),
    "schedule with betas of its own": change("schedule", "trained_betas", to=[0.1, 0.2]),
    "schedule with a dictionary": change("schedule", "more", to={"_name_or_path": "google/x"}),
    "schedule of another class": change("schedule", "prediction_type", to="epsilon"),
    # sizes
    "10^9 channels": change("config", "model", "channels", to=[10**9, 10**9]),
    "10^6 levels": change("config", "model", "channels", to=[8] * 10**6),
    "10^9 layers": change("config", "model", "layers", to=10**9),
    "10^9 distances": change("config", "model", "distances", to=[1] * 10**5),
    "a slab of 10^9": change("config", "model", "slab", to=10**9 + 1),
    "10^9 timesteps": change("config", "model", "train_timesteps", to=10**9),
    "10^5 sequences": change("config", "model", "sequences", to=[f"T{n}w" for n in range(10**5)]),
    "a grid of 10^30 voxels": change("config", "grid", "shape", to=[8 * 10**9] * 3),
    "all sizes at their bounds": change(
        "config", "model", to={"channels": [2048] * 6, "layers": 8, "distances": list(range(1, 17))}
    ),
    "a number of 400 digits": change("config", "train", "seed", to=10**400),
    "facts of more bytes than are read": text(b'{"a": "' + b"x" * MOST_FACTS + b'"}'),
    # settings
    "a NaN setting": change("config", "harmonize", "timeout_s", to=float("nan")),
    "an infinite setting": change("config", "grid", "spacing_mm", to=float("inf")),
    "a section of no model": change("config", "style", to={"backbone": "hf-hub:some/body"}),
    "a store of its own": change("config", "tracking", to={"uri": "http://127.0.0.1:1"}),
    "a section too few": change("config", "harmonize", to=...),
    "a sequence that leads elsewhere": change("config", "model", "sequences", to=["../T1w", "T2w"]),
    "other sequences than its settings": change("sequences", to=["T2w", "T1w"]),
    # the unified domain
    "NaN in the unified domain": change("unified_domain", "T1w", 0, 5, to=float("nan")),
    "a unified domain x 10^30": change("unified_domain", "T1w", to=(1e30 * QUANTILES[0]).tolist()),
    "a unified domain beyond float32": change("unified_domain", "T1w", 0, 256, to=1e300),
    "a unified domain that falls": change("unified_domain", "T1w", to=QUANTILES[0].flip(1).tolist()),
    "a unified domain of another length": change("unified_domain", to={n: [[0.0, 1.0]] * 2 for n in ("T1w", "T2w")}),
    "a unified domain of text": change("unified_domain", "T1w", to=[["a"] * 257] * 2),
    "a unified domain of numbers": change("unified_domain", "T1w", to=5),
    "one sequence more": change("unified_domain", "FLAIR", to=QUANTILES[0].tolist()),
    # levels
    "levels that are a list": change("levels", to=[1]),
    "levels of another sequence": change("levels", to={"FLAIR": [[0.0, 1.0], [0.0, 1.0]]}),
    "levels of one list": change("levels", to={"T1w": [0.0, 1.0]}),
    "levels of two lengths": change("levels", to={"T1w": [[0.0, 1.0], [0.0]]}),
    "levels without end": change("levels", to={"T1w": [[n / 1000 for n in range(1000)]] * 2}),
    "levels that repeat": change("levels", to={"T1w": [[0.0, 0.5, 0.5], [0.0, 0.4, 0.6]]}),
    "levels that fall": change("levels", to={"T1w": [[0.0, 0.5, 1.0], [0.0, 0.6, 0.2]]}),
    "levels that are NaN": change("levels", to={"T1w": [[0.0, float("nan")], [0.0, 1.0]]}),
    "levels of text": change("levels", to={"T1w": [["a", "b"], [0.0, 1.0]]}),
    # kinds
    "a fact that nobody knows": change("more", to=1),
    "facts that are a list": text("[]"),
    "facts that are null": text("null"),
    "facts nested deeply": text('{"a":' * 50_000),
    "lists in lists in the facts": text('{"format": 5, "kind": "global", "x": ' + "[" * 900 + "]" * 900 + "}"),
    "facts that are no text": text(b"\xff\xfe\x00"),
    "format true": change("format", to=True),
    "training is a list": change("training", to=[]),
    "training nested deeply": change("training", to={"a": json.loads("[" * 300 + "]" * 300)}),
    "counts of a kind of their own": change("training", to={"counts": {"north": 3}}),
    "counts that are a list": change("training", to={"counts": []}),
    "NaN in the account of the training": change("training", to={"validation": {"loss": float("nan")}}),
    "a checksum that is none": change("weights_sha256", to=5),
    "no code version": change("code_version", to=None),
    "settings that are text": change("config", to="model"),
    "a section that is text": change("config", "model", to="large"),
    # weights
    "NaN weights": spoil("denoiser.plane.weight", float("nan"), 0, 0),
    "infinite weights": spoil("denoiser.unet.conv_in.weight", float("inf"), 0, 0, 0, 0),
    "integer weights": reweighted(lambda state: {name: tensor.int() for name, tensor in state.items()}),
    "weights in half precision": reweighted(lambda state: {name: tensor.half() for name, tensor in state.items()}),
    "weights in double precision": reweighted(lambda state: {name: tensor.double() for name, tensor in state.items()}),
    "weights too many": reweighted(lambda state: state.__setitem__("more", torch.zeros(3))),
    "weights too few": reweighted(lambda state: state.pop("domain_moments") is None),
    "weights transposed": reweighted(
        lambda state: state.__setitem__("denoiser.plane.weight", state["denoiser.plane.weight"].T.contiguous())
    ),
    "no weights": raw(header({})),
    "an empty file": raw(b""),
    "weights that are no safetensors": raw(b"not a header, but long enough to be one"),
    "a list of tensors of 2^63 bytes": raw(header({}, length=2**63)),
    "a list of tensors longer than the file": raw(header({}, length=10**6)),
    "a tensor of 10^18 numbers": raw(header({"domain_moments": HUGE}, b"\0" * 4)),
    "a tensor beyond the file": raw(header({"domain_moments": F32 | {"data_offsets": [0, 10**15]}}, b"\0" * 4)),
    "tensors that overlap": raw(header({"domain_cumulative": F32, "domain_moments": F32}, b"\0" * 4)),
    "a tensor of a negative shape": raw(header({"domain_moments": F32 | {"shape": [-1]}}, b"\0" * 4)),
    "a tensor of an unknown type": raw(header({"domain_moments": F32 | {"dtype": "F9"}}, b"\0" * 4)),
    # statistics
    "a domain in the weights that is NaN": spoil("domain_quantiles", float("nan"), 0, 0, 5),
    "a domain in the weights that falls": spoil("domain_quantiles", -5.0, 0, 0, 128),
    "moments of 10^30": spoil("domain_moments", 1e30, 0, 0),
    "a cumulative of 5": spoil("domain_cumulative", 5.0, 0, 0),
    # files
    "facts behind a link": linked(FACTS, "../away/{name}"),
    "weights behind a link": linked(WEIGHTS, "../away/{name}"),
    "weights linked to /dev/zero": linked(WEIGHTS, "/dev/zero"),
    "facts linked to /dev/zero": linked(FACTS, "/dev/zero"),
    "a link to itself": linked(WEIGHTS, "{name}"),
    "a pipe for facts": pipe(FACTS),
    "a pipe for weights": pipe(WEIGHTS),
}


def test_an_unchanged_bundle_is_loaded(bundle: Path) -> None:
    load_bundle(bundle)


@pytest.mark.parametrize("act", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_bundle_is_refused_in_good_time(bundle: Path, act: Callable[[Path], None]) -> None:
    act(bundle)
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        load_bundle(bundle)
    assert time.process_time() - start < 5
    assert caught.value.expected
    assert caught.value.remedy
    assert len(str(caught.value)) < 3000


def test_a_folder_name_that_is_too_long_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_bundle(tmp_path / ("x" * 5000))


def test_facts_alone_are_checked_where_weights_are_not_read(bundle: Path) -> None:
    change("schedule", to="google/ddpm-cat-256")(bundle)
    for read in (bundle_hash, bundle_files):
        with pytest.raises(ModelError, match=r"schedule=google/ddpm-cat-256; expected a dict"):
            read(bundle)


def test_a_weights_file_larger_than_the_model_is_not_read(bundle: Path) -> None:
    with open(bundle / WEIGHTS, "ab") as stream:
        stream.truncate(100 * 2**30)  # sparse: it takes no space on the disk
    start = time.process_time()
    with pytest.raises(ModelError, match="larger than"):
        load_bundle(bundle)
    assert time.process_time() - start < 2


def test_only_a_bundles_own_files_go_to_other_machines(bundle: Path, original: dict[str, bytes]) -> None:
    (bundle / "secret.txt").write_text("of somebody else")
    (bundle / "zeros").symlink_to("/dev/zero")
    os.mkfifo(bundle / "pipe")
    assert bundle_files(bundle) == {name: original[name] for name in (FACTS, WEIGHTS)}


def test_a_bundle_behind_a_link_and_links_within_it_are_read(bundle: Path) -> None:
    (bundle.parent / "current").symlink_to(bundle.name)
    (bundle / WEIGHTS).rename(bundle / "v1")
    (bundle / WEIGHTS).symlink_to("v1")
    assert load_bundle(bundle.parent / "current").hash == bundle_hash(bundle)


def test_schedule_facts_of_another_diffusers_release_are_ignored(bundle: Path) -> None:
    change("schedule", "a_setting_of_tomorrow", to=1.5)(bundle)
    change("schedule", "thresholding", to=...)(bundle)
    assert load_bundle(bundle).model.scheduler.config["num_train_timesteps"] == 1000


def test_a_model_that_diverged_is_not_saved(tmp_path: Path) -> None:
    for spoilt in ("denoiser.plane.weight", "domain_moments"):
        model = GlobalHarmonizer(CONFIG.model, CONFIG.train, QUANTILES)
        with torch.no_grad():
            model.state_dict()[spoilt][0, 0] = float("nan")
        with pytest.raises(ModelError, match=rf"{spoilt} .*Train again"):
            save_bundle(tmp_path / "b", model, CONFIG, quantiles=QUANTILES, data_hash="", training={})
    assert list(tmp_path.iterdir()) == []


def test_every_stored_section_is_one_of_the_settings() -> None:
    assert set(SECTIONS) <= set(Config.__dataclass_fields__)


def test_the_card_is_for_people_and_may_say_anything(bundle: Path) -> None:
    (bundle / CARD).unlink()
    assert load_bundle(bundle).config.model == CONFIG.model
