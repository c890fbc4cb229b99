"""Shipped weights are only read if they match their card."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mmh_ray.errors import ModelError
from mmh_ray.imaging.brain_extractor import WEIGHTS as BRAIN
from mmh_ray.imaging.brain_extractor import load_brain_extractor
from mmh_ray.models.style.embedded import WEIGHTS as STYLE
from mmh_ray.models.style.embedded import embedded_weights
from mmh_ray.shipped_weights import read_weights, write_weights

pytestmark = pytest.mark.fast

CARD = "Some words.\n\n- {note}\n- size: {size}\n- SHA-256 of net.safetensors: `{sha256}`\n"


@pytest.mark.parametrize(("shipped", "load"), [(BRAIN, load_brain_extractor), (STYLE, embedded_weights)])
def test_damaged_weights_are_refused(shipped: Path, load: Callable[..., object], tmp_path: Path) -> None:
    copied = Path(shutil.copy(shipped, tmp_path))
    shutil.copy(shipped.with_suffix(".md"), tmp_path)
    load(weights=copied)
    content = bytearray(copied.read_bytes())
    content[-1] ^= 1  # one bit of one weight
    copied.write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged \(other checksum\); expected the weights that .*md describes. Inst"):
        load(weights=copied)


def test_weights_without_their_card_are_refused(tmp_path: Path) -> None:
    copied = Path(shutil.copy(BRAIN, tmp_path))
    with pytest.raises(ModelError, match=r"brain\.md.*expected weights with their card"):
        read_weights(copied)


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    state = {"weight": torch.arange(6.0).reshape(2, 3)}
    path = tmp_path / "net.safetensors"
    write_weights(path, state, CARD, {"note": f"started at weights of SHA-256 `{'a' * 64}`"})
    torch.testing.assert_close(safetensors.torch.load(read_weights(path)), state)
    assert "6 parameters" in path.with_suffix(".md").read_text()
    path.with_suffix(".md").write_text(CARD.format(note="", size="", sha256="a" * 64))
    with pytest.raises(ModelError, match="damaged"):
        read_weights(path)
