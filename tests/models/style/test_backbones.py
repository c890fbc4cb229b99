"""Backbones: what ships, what open_clip brings, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mmh_ray.config import StyleConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.style.backbones import load_backbone, weights_hash
from mmh_ray.models.style.embedded import EmbeddedBackbone, embedded_weights
from mmh_ray.models.style.encoder import make_style_encoder
from mmh_ray.provenance import sha256_file

pytestmark = pytest.mark.fast

VISION = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
SETTINGS = {"model_cfg": {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": {"hf_model_name": "not/there"}}}


def vision_tower(settings: dict) -> torch.nn.Module:
    """An image tower of open_clip with random weights, of eight features."""
    from open_clip.model import _build_vision_tower  # takes seconds, which collecting the tests need not pay

    return _build_vision_tower(8, settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A one-layer image tower with random weights, as a hub's folder holds them: the text tower's weights beside it."""
    path = tmp_path / "tiny-clip"
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps(SETTINGS))
    tower = vision_tower(VISION)
    state = {f"visual.{name}": value.contiguous() for name, value in tower.state_dict().items()}
    safetensors.torch.save_file(state | {"text.proj": torch.ones(2)}, path / "open_clip_model.safetensors")
    return path


def test_embedded_weights_fit_and_are_small() -> None:
    weights = embedded_weights()
    assert {name.split(".")[0] for name in weights} == {"backbone", "aggregator"}
    assert sum(tensor.nbytes for tensor in weights.values()) < 1.5e6
    encoder = make_style_encoder(StyleConfig(), 3.0)
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())


def test_embedded_features_ignore_place() -> None:
    torch.manual_seed(0)
    backbone, image = EmbeddedBackbone(16, width=4), torch.zeros(1, 1, 48, 48)
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 12:28, 12:28], image[..., 12:28, 12:28] = 1, torch.rand(16, 16)
    moved = [tensor.roll((8, 4), (2, 3)) for tensor in (image, mask)]
    with torch.no_grad():
        torch.testing.assert_close(backbone(image, mask), backbone(*moved), rtol=1e-4, atol=1e-5)


def test_hash_knows_values_and_names_only() -> None:
    one, other = EmbeddedBackbone(16, width=4), EmbeddedBackbone(16, width=4)
    assert weights_hash(one) != weights_hash(other)
    other.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(other)


def test_folder_gives_its_image_tower_without_the_text(folder: Path) -> None:
    backbone = load_backbone(StyleConfig(backbone=str(folder)))
    state = safetensors.torch.load_file(folder / "open_clip_model.safetensors")
    assert all(torch.equal(value, state[f"visual.{name}"]) for name, value in backbone.tower.state_dict().items())
    assert (backbone.dimensions, backbone.pixel_mm) == (8, 1.0)
    assert not backbone.training


def test_folder_of_another_place_is_the_same_encoder(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    one, other = (load_backbone(StyleConfig(backbone=str(path))) for path in (folder, copy))
    assert weights_hash(one) == weights_hash(other)


def test_folder_with_torch_weights_reads_tensors_alone(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    backbone = load_backbone(StyleConfig(backbone=str(folder)))
    assert torch.equal(backbone.tower.proj, state["visual.proj"])


class _Burst:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_folder_with_a_pickled_program_is_refused_unexecuted(folder: Path, tmp_path: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(_Burst(tmp_path / "executed"), protocol=2))
    with pytest.raises(ModelError, match=r"open_clip_pytorch_model\.bin: UnpicklingError"):
        load_backbone(StyleConfig(backbone=str(folder)))
    assert not (tmp_path / "executed").exists()


def test_folder_encodes_volumes_differentiably(folder: Path) -> None:
    encoder = make_style_encoder(StyleConfig(backbone=str(folder), slices=2), 3.0)
    volume = torch.rand(2, 16, 24, 16, requires_grad=True)  # 72 mm: more than the tower's 32 pixels
    styles = encoder(volume, torch.ones(volume.shape, dtype=torch.bool))
    styles.square().sum().backward()
    assert styles.shape == (2, 8)
    assert volume.grad.flatten(1).any(1).all()


def test_residual_tower_takes_slices_of_any_size(folder: Path) -> None:
    settings = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None, "image_size": 64}
    (folder / "open_clip_config.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": settings}))
    state = {f"visual.{name}": value for name, value in vision_tower(settings).state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    backbone = load_backbone(StyleConfig(backbone=str(folder)))
    for size in ((40, 48), (80, 72)):
        image = torch.rand(2, 1, *size, requires_grad=True)
        vectors = backbone(image, torch.ones(2, 1, *size))
        vectors.square().sum().backward()
        assert vectors.shape == (2, 8)
        assert image.grad.any()


def test_checksum_is_checked_and_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    right = sha256_file(folder / "open_clip_model.safetensors")
    with caplog.at_level("INFO", "mmh_ray"):
        load_backbone(StyleConfig(backbone=str(folder)))
    assert f"open_clip_model.safetensors: SHA-256 {right}" in caplog.text
    load_backbone(StyleConfig(backbone=str(folder), sha256=right))
    with pytest.raises(ModelError, match=f"SHA-256 {right}; expected style.sha256=0000"):
        load_backbone(StyleConfig(backbone=str(folder), sha256="0000"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("open_clip_model.safetensors", None, "without weights; expected one of"),
        ("open_clip_model.safetensors", b"damaged", "expected weights of the configured image tower"),
        ("open_clip_config.json", None, "FileNotFoundError"),
        ("open_clip_config.json", b"{", "JSONDecodeError"),
        ("open_clip_config.json", b"{}", "KeyError: 'embed_dim'"),
        (
            "open_clip_config.json",
            json.dumps({"embed_dim": 9, "vision_cfg": VISION}).encode(),
            "size mismatch for proj",
        ),
        ("open_clip_config.json", json.dumps({"embed_dim": 8, "vision_cfg": {"new": 1}}).encode(), "can build"),
    ],
)
def test_damaged_folder_is_refused(folder: Path, file: str, content: bytes | None, message: str) -> None:
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_backbone(StyleConfig(backbone=str(folder)))


def described(**vision: object) -> dict[str, object]:
    """Another configuration of the tower."""
    return {"embed_dim": 8, "vision_cfg": VISION | vision}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (described(timm_model_name="hf-hub:some/body"), "timm_model_name=hf-hub:some/body, which no tower has"),
        (described(timm_model_name="hf_hub:some/body"), "which no tower has"),
        (described(timm_model_name="local-dir:/etc"), "which no tower has"),
        (described(timm_model_name="some/body"), "which no tower has"),
        (described(timm_model_name="no_such_model"), "can build"),
        (described(width=10**9), "width=1000000000, which no tower has"),
        (described(layers=10**9), "which no tower has"),
        (described(layers=[1] * 10**4), "which no tower has"),
        (described(image_size=10**9), "which no tower has"),
        (described(width=float("nan")), "which no tower has"),
        (described(norm_kwargs={"eps": [1]}), "which no tower has"),
        (described(norm_kwargs={"no_such": 1}), "can build"),
        (described(head_width=0), "can build"),
        (described(patch_size=0), "can build"),
        (described(width=8192, layers=256), "million weights; expected one that open_clip_model.safetensors"),
        ({"embed_dim": 10**9, "vision_cfg": VISION}, "embed_dim=1000000000, which no tower has"),
        ({"embed_dim": "8", "vision_cfg": VISION}, "can build"),
        ({"embed_dim": 8, "vision_cfg": [1]}, "TypeError"),
        ({"model_cfg": [1]}, "open_clip configuration"),
        (described() | {"preprocess_cfg": {"mean": [1, 2]}}, "preprocess_cfg with mean"),
        (described() | {"preprocess_cfg": {"std": [1, 1, 0]}}, "preprocess_cfg with std"),
        (described() | {"preprocess_cfg": {"std": [1, 1, float("nan")]}}, "preprocess_cfg with std"),
        (described() | {"preprocess_cfg": {"mean": "abc"}}, "preprocess_cfg with mean"),
        (described() | {"preprocess_cfg": [1]}, "AttributeError"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else "",
)
def test_a_folder_that_asks_for_more_is_refused_without_a_network(
    folder: Path, settings: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a folder asks for a network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message) as caught:
        load_backbone(StyleConfig(backbone=str(folder)))
    assert "network" not in str(caught.value)


def test_a_folder_of_pipes_and_devices_is_refused_at_once(folder: Path) -> None:
    weights, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(ModelError, match="without weights"):
        load_backbone(StyleConfig(backbone=str(folder)))
    for replace in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        config.unlink()
        replace(config)
        with pytest.raises(ModelError, match="not a regular file"):
            load_backbone(StyleConfig(backbone=str(folder)))


@pytest.mark.parametrize("content", [{}, [], 3, {"visual.proj": "text"}, {"state_dict": 5}], ids=repr)
def test_weights_of_another_kind_are_refused(folder: Path, content: object) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(content, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"weights of the configured image tower|tower of"):
        load_backbone(StyleConfig(backbone=str(folder)))


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    file = folder / "open_clip_model.safetensors"
    state = safetensors.torch.load_file(file)
    state["visual.proj"][0, 0] = float("nan")
    safetensors.torch.save_file(state, file)
    with pytest.raises(ModelError, match="proj with NaN or infinite weights"):
        load_backbone(StyleConfig(backbone=str(folder)))


def test_a_tower_of_timm_is_built_by_its_name(folder: Path) -> None:
    settings = described(timm_model_name="vit_tiny_patch16_224", timm_pool="", timm_proj="linear", image_size=32)
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    tower = vision_tower(settings["vision_cfg"])
    state = {f"visual.{name}": value.contiguous() for name, value in tower.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    assert load_backbone(StyleConfig(backbone=str(folder))).dimensions == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "no/such/folder"}, "expected embedded, hf-hub:OWNER/NAME, a folder or an open_clip name"),
        ({"backbone": "ViT-B-16"}, "style.weights=None for ViT-B-16; expected a file, random or one of openai"),
        ({"backbone": "embedded", "weights": "random"}, "with the embedded backbone"),
        ({"backbone": "embedded", "sha256": "00"}, "with the embedded backbone"),
    ],
)
def test_a_configuration_without_weights_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_backbone(StyleConfig(**settings))


def test_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"Set style\.backbone to a folder that holds"):
        load_backbone(StyleConfig(backbone="hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"))


@pytest.mark.slow
def test_named_tower_with_random_weights_is_the_same_every_time() -> None:
    one, other = (load_backbone(StyleConfig(backbone="RN50", weights="random")) for _ in range(2))
    assert weights_hash(one) == weights_hash(other)


@pytest.mark.slow
def test_wheel_holds_the_weights(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(repository / "mmh_ray", source / "mmh_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    base = [f"mmh-base/{name}" for name in ("config.json", "denoiser.safetensors", "MODEL_CARD.md")]
    wanted = {f"mmh_ray/models/weights/{name}" for name in ("style.safetensors", "style.md", *base)}
    wanted |= {f"mmh_ray/imaging/weights/{name}" for name in ("brain.safetensors", "brain.md")}
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())
