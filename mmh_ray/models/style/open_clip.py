"""Image towers of open_clip as backbones of the style encoder: from the hub, from a folder, or by name. Text towers are
never built."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_state_dict
from open_clip.model import _build_vision_tower
from open_clip.utils import to_2tuple
from torch import Tensor, nn

from mmh_ray.config import StyleConfig
from mmh_ray.errors import ModelError
from mmh_ray.files import read_object
from mmh_ray.models.style.slice_backbone import SliceBackbone
from mmh_ray.models.without_values import without_values
from mmh_ray.provenance import sha256_file

log = logging.getLogger(__name__)

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Possible names of the weights in a folder; the first one that exists is used."""
HUB = "hf-hub:"
RANDOM = "random"
"""Value of `style.weights` for an untrained tower."""

MOST_CONFIG = 2**20
"""Largest size of a folder's configuration in bytes."""
MOST_LAYERS = 256
"""Largest number of layers of a tower."""
MOST_SIDE = 1024
"""Largest side of a tower's image in pixels."""
MOST_WIDTH = 8192
"""Upper bound of every other number in a tower's configuration."""

_MOST_OF = {"layers": MOST_LAYERS, "image_size": MOST_SIDE}
_SEED = 0
_COPY_WEIGHTS = "Copy the weights again, or name the model that they belong to."


class OpenClipBackbone(SliceBackbone):
    """The image tower of an open_clip model, at 1 mm per pixel as in arXiv 2601.08193.

    Slices are padded with zeros, or cropped, to the tower's square image. They are repeated to three channels and
    normalised as in the tower's training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, tower: nn.Module, dimensions: int, preprocess: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.dimensions = dimensions
        self.pixel_mm = 1.0
        self.tower: Any = tower
        mean = preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN
        std = preprocess.get("std") or open_clip.OPENAI_DATASET_STD
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Vectors ``(N, D)`` of slices; masks are not needed, as everything outside the brain is zero."""
        height, width = to_2tuple(self.tower.image_size)
        more_rows = height - images.shape[-2]  # a negative number crops
        more_columns = width - images.shape[-1]
        top = more_rows // 2
        left = more_columns // 2
        square = F.pad(images, (left, more_columns - left, top, more_rows - top))
        coloured = square.expand(-1, 3, -1, -1)
        return self.tower((coloured - self.mean) / self.std)


@dataclass(frozen=True)
class _Source:
    """Settings and weights of a tower; without a file it stays untrained."""

    settings: dict[str, Any]
    file: Path | None
    preprocess: dict[str, Any] = field(default_factory=dict)


def open_clip_backbone(config: StyleConfig) -> OpenClipBackbone:
    """Load the image tower ``style.backbone``; raises as :func:`mmh_ray.models.style.backbones.load_backbone`."""
    if config.backbone.startswith(HUB):
        source = _from_folder(_download(config.backbone), config)
    elif os.path.isdir(config.backbone):
        source = _from_folder(Path(config.backbone), config)
    else:
        source = _by_name(config)
    tower = _build(source, config.backbone)
    if source.file is not None:
        _check_hash(source.file, config.sha256)
        _load_weights(tower, source.file)
    return OpenClipBackbone(config.backbone, tower, source.settings["embed_dim"], source.preprocess)


def _download(name: str) -> Path:
    """Download configuration and weights of a hub model; returns their folder in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=[CONFIG_FILE, *WEIGHT_FILES]))
    except Exception as error:  # the hub's client passes on any exception of its transport
        remedy = f"Set style.backbone to a folder that holds {CONFIG_FILE} and the weights, or to embedded."
        received = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(received, "a model of the hub, or one in its cache", remedy) from error


def _from_folder(folder: Path, config: StyleConfig) -> _Source:
    if config.weights is not None:
        received = f"style.weights={config.weights!r} with {config.backbone}"
        raise ModelError(received, "none: the folder has its own weights", "Leave style.weights out.")
    place = folder / CONFIG_FILE
    try:
        described = read_object(place, MOST_CONFIG)
        model = described.get("model_cfg", described)
        settings = {
            "embed_dim": model["embed_dim"],
            "vision_cfg": model["vision_cfg"],
            "quick_gelu": bool(model.get("quick_gelu", False)),
        }
        preprocess = _checked_preprocessing(described.get("preprocess_cfg", {}))
        _check_tower(settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        received = f"{place}: {type(error).__name__}: {error}"
        remedy = "Copy the model's whole folder from the hub again."
        raise ModelError(received, "an open_clip configuration with embed_dim and vision_cfg", remedy) from error
    present = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not present:
        raise ModelError(f"{folder}: without weights", f"one of {', '.join(WEIGHT_FILES)}", "Copy the weights there.")
    source = _Source(settings, present[0], preprocess)
    if not source.settings["vision_cfg"].get("timm_model_name"):  # a timm model's size depends only on its name
        _check_size(source, folder)
    return source


def _checked_preprocessing(preprocess: Any) -> dict[str, Any]:
    """``mean`` and ``std`` of a configuration, if present; ValueError unless each is three plausible numbers."""
    checked = {}
    for key, least in (("mean", -100), ("std", 1e-6)):
        values = preprocess.get(key)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != 3 or not all(least <= value <= 100 for value in values):
            raise ValueError(f"preprocess_cfg with {key}={str(values)[:100]}")
        checked[key] = values
    return checked


def _check_tower(settings: Mapping[str, Any]) -> None:
    """ValueError if a tower's configuration contains implausible numbers, or anything but plain values.

    A timm model must be given by its plain name: with a prefix, timm would download it from a hub or read another
    folder.
    """
    values = {"embed_dim": settings["embed_dim"], **settings["vision_cfg"]}
    for key, value in values.items():
        most = _MOST_OF.get(key, MOST_WIDTH)
        items = _items_of(value)
        is_short = len(items) <= 8
        if not is_short or not all(_is_modest(item, most) for item in items):
            raise ValueError(f"{key}={str(value)[:100]}, which no tower has")


def _items_of(value: Any) -> list[Any]:
    """Values of a list or dictionary; a single value becomes a list of one."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _is_modest(value: Any, most: int) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z0-9_.-]{0,200}", value) is not None
    is_number = isinstance(value, int | float)
    return is_number and abs(value) <= most  # NaN is not


def _check_size(source: _Source, folder: Path) -> None:
    """ModelError if the weights file is too small for the tower, which is built without memory for its weights."""
    assert source.file is not None
    with without_values():
        tower = _build(source, str(folder))
    weights = sum(tensor.numel() for tensor in tower.state_dict().values())
    size = source.file.stat().st_size
    least_bytes = 2 * weights  # in half precision
    tolerance = 2**20  # ignores buffers of tiny towers that are not in the file
    if least_bytes > size + tolerance:
        received = f"{folder / CONFIG_FILE}: a tower of {weights / 1e6:.0f} million weights"
        expected = f"one that {source.file.name} of {size} bytes can hold"
        raise ModelError(received, expected, "Copy the folder again.")


def _by_name(config: StyleConfig) -> _Source:
    name = config.backbone
    weights = config.weights
    settings = open_clip.get_model_config(name)
    if settings is None:
        expected = "embedded, hf-hub:OWNER/NAME, a folder or an open_clip name"
        remedy = "Set style.backbone to one of them; open_clip.list_models() lists the names."
        raise ModelError(f"style.backbone={name!r}", expected, remedy)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights == RANDOM:
        return _Source(settings, None)
    if weights in tags:
        known = open_clip.get_pretrained_cfg(name, weights)
        settings["quick_gelu"] = known.get("quick_gelu", settings.get("quick_gelu", False))
        return _Source(settings, Path(open_clip.download_pretrained(known)), known)
    if weights is not None and os.path.isfile(weights):
        return _Source(settings, Path(weights))
    expected = f"a file, {RANDOM} or one of {', '.join(tags) or 'no tags'}"
    raise ModelError(f"style.weights={weights!r} for {name}", expected, "Set style.weights.")


def _build(source: _Source, name: str) -> nn.Module:
    """Build the tower with weights from a fixed seed, so that an untrained tower is the same everywhere."""
    vision = {**source.settings["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            return _build_vision_tower(source.settings["embed_dim"], vision, source.settings.get("quick_gelu", False))
    except Exception as error:  # open_clip can raise anything for an unusual configuration
        received = f"{name}: {' '.join(str(error).split())[:300]}"
        remedy = "Install the release of open_clip_torch that the model needs."
        raise ModelError(received, "an image tower that open_clip can build", remedy) from error


def _check_hash(file: Path, expected: str | None) -> None:
    """Log the file's hash, so that it can be pinned; ModelError if it is not the expected one."""
    sha256 = sha256_file(file)
    log.info("%s: SHA-256 %s", file, sha256)
    if expected not in (None, sha256):
        remedy = "Copy the weights again, or correct style.sha256."
        raise ModelError(f"{file}: SHA-256 {sha256}", f"style.sha256={expected}", remedy)


def _load_weights(tower: nn.Module, file: Path) -> None:
    """Load the ``visual.`` part of a checkpoint, or a checkpoint of the tower alone; unpickles only tensors."""
    try:
        state = load_state_dict(str(file), weights_only=True)
        visual = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
        tower.load_state_dict(visual or state)
    except Exception as error:  # an untrusted file can raise anything
        received = f"{file}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(received, "weights of the configured image tower", _COPY_WEIGHTS) from error
    not_finite = [name for name, value in tower.state_dict().items() if not bool(torch.isfinite(value).all())]
    if not_finite:
        received = f"{file}: {not_finite[0]} with NaN or infinite weights"
        raise ModelError(received, "finite weights of the configured image tower", _COPY_WEIGHTS)
