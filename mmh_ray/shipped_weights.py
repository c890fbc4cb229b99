"""Reads and writes the shipped small networks: a weights file, and a card that states its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmh_ray.errors import ModelError
from mmh_ray.files import read_bytes
from mmh_ray.provenance import whole_file

if TYPE_CHECKING:
    from torch import Tensor

_REMEDY = "Install mmh-ray again."


def read_weights(path: Path) -> bytes:
    """Content of ``NAME.safetensors``.

    Raises
    ------
    ModelError
        If it cannot be read, or its checksum is not the one on its card ``NAME.md``.
    """
    card = path.with_suffix(".md")
    try:
        content = read_bytes(path)
        text = read_bytes(card).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: {error}", "weights with their card", _REMEDY) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if f"SHA-256 of {path.name}: `{sha256}`" not in text:
        raise ModelError(f"{path}: damaged (other checksum)", f"the weights that {card.name} describes", _REMEDY)
    return content


def write_weights(path: Path, state: Mapping[str, Tensor], card: str, facts: Mapping[str, object]) -> None:
    """Write weights and their card.

    Parameters
    ----------
    card:
        Template of the card for ``str.format``, with fields for the ``facts`` and the file's ``{size}``, and with a
        line that begins with ``SHA-256 of NAME.safetensors: `{sha256}```.
    """
    import safetensors.torch

    content = safetensors.torch.save(dict(state))
    parameters = sum(tensor.numel() for tensor in state.values())
    size = f"{len(content) / 1e6:.2f} MB, {parameters:,} parameters"
    sha256 = hashlib.sha256(content).hexdigest()
    with whole_file(path) as partial:
        partial.write_bytes(content)
    with whole_file(path.with_suffix(".md")) as partial:
        partial.write_text(card.format(size=size, sha256=sha256, **facts), encoding="utf-8")
