"""Loads the backbone of the style encoder: the embedded one, or the image tower of an open_clip model."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from mmh_ray.config import StyleConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.style.embedded import EMBEDDED, EmbeddedBackbone, embedded_weights
from mmh_ray.models.style.slice_backbone import SliceBackbone


def load_backbone(config: StyleConfig) -> SliceBackbone:
    """Load the configured backbone, in evaluation mode and frozen.

    Raises
    ------
    ModelError
        If the name is unknown, the folder or the weights are missing, the checksum differs, or the weights are damaged
        or do not fit.
    """
    backbone: SliceBackbone
    if config.backbone == EMBEDDED:
        backbone = _embedded(config)
    else:
        # Importing open_clip takes seconds, and the embedded backbone does not need it.
        from mmh_ray.models.style.open_clip import open_clip_backbone

        backbone = open_clip_backbone(config)
    return backbone.eval().requires_grad_(False)


def _embedded(config: StyleConfig) -> SliceBackbone:
    for key in ("weights", "sha256"):
        value = getattr(config, key)
        if value is not None:
            remedy = f"Leave style.{key} out, or name another style.backbone."
            raise ModelError(f"style.{key}={value!r} with the embedded backbone", "none", remedy)
    backbone = EmbeddedBackbone()
    backbone.load_state_dict(embedded_weights("backbone"))
    return backbone


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a module's parameters and buffers, independent of its file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        head = f"{name} {plain.dtype} {tuple(plain.shape)}\n"
        digest.update(head.encode())
        as_bytes = plain.reshape(-1).view(torch.uint8)
        digest.update(as_bytes.numpy().data)
    return digest.hexdigest()
