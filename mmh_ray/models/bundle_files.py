"""Reads and checks the files of an untrusted bundle: regular files in one folder, of bounded size, with plain facts and
finite weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mmh_ray.errors import ModelError
from mmh_ray.files import is_inside, read_bytes

MOST_FACTS = 4 * 2**20
"""Largest size of a bundle's facts in bytes: they are copied into every sidecar."""
MOST_HEADER = 2 * 2**20
"""Largest size of the list of tensors at the head of a safetensors file, in bytes."""

_DEEPEST = 12
_LARGEST = 2**63


def read_part(folder: Path, name: str, most: int, remedy: str) -> bytes:
    """Content of a file of a bundle.

    Raises
    ------
    ModelError
        If it is missing, not a regular file, larger than ``most`` bytes, or a link out of the folder.
    """
    path = folder / name
    expected = f"a model bundle (a folder with {name})"
    if not os.path.isdir(folder):  # pathlib raises where a name is too long
        made = "Check the path; `mmh train-global` and `mmh train-target` make bundles."
        raise ModelError(f"{folder}: no such folder", expected, made)
    if not is_inside(path, folder):
        received = f"{path}: a link to a file outside the bundle"
        raise ModelError(received, "a bundle with all files in its own folder", "Copy the file itself there.")
    try:
        return read_bytes(path, most)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}", expected, remedy) from error


def check_kinds(facts: Any, kinds: Mapping[str, Any], place: str, remedy: str) -> None:
    """Raise ModelError unless ``facts`` is a dict with exactly these keys, each with a value of its type.

    An int is accepted as a float; a bool is accepted only as an object.
    """
    if not isinstance(facts, dict):
        kind_found = type(facts).__name__
        raise ModelError(f"{place}: a {kind_found}", f"an object with {', '.join(kinds)}", remedy)
    missing = sorted(set(kinds) - set(facts))
    if missing:
        raise ModelError(f"{place}: without {', '.join(missing)}", "all facts of a bundle", remedy)
    unknown = sorted(set(facts) - set(kinds))
    if unknown:
        names = ", ".join(unknown)
        received = f"{place}: unknown {names[:200]}"
        raise ModelError(received, f"nothing but {', '.join(kinds)}", remedy)
    for key, kind in kinds.items():
        value = facts[key]
        if not _is_of_kind(value, kind):
            raise ModelError(f"{place}: {key}={str(value)[:100]}", f"a {kind.__name__}", remedy)


def _is_of_kind(value: Any, kind: type) -> bool:
    if kind is object:
        return True
    if isinstance(value, bool):  # a subclass of int
        return False
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def parse_weights(content: bytes, place: Path, remedy: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file; ModelError unless all are float32 and finite."""
    expected = "a safetensors file with finite weights in float32"
    if int.from_bytes(content[:8], "little") > MOST_HEADER:
        raise ModelError(
            f"{place}: unreadable (its list of tensors is longer than {MOST_HEADER} bytes)", expected, remedy
        )
    try:
        state = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{place}: unreadable ({error})", expected, remedy) from error
    check_weights(state, str(place), remedy)
    return state


def check_weights(state: Mapping[str, Tensor], place: str, remedy: str) -> None:
    """Raise ModelError unless all tensors are float32 and finite."""
    for name, tensor in state.items():
        short_name = name[:100]
        if tensor.dtype != torch.float32:
            received = f"{place}: {short_name} in {tensor.dtype}"
            raise ModelError(received, "weights in float32", remedy)
        is_finite = torch.isfinite(tensor)
        if not bool(is_finite.all()):
            received = f"{place}: {short_name} with NaN or infinite weights"
            raise ModelError(received, "finite weights", remedy)


def check_plain(value: Any, depth: int = 0) -> None:
    """ValueError if a number is huge or not finite, or if values are nested too deeply."""
    if depth > _DEEPEST:
        raise ValueError(f"nested in more than {_DEEPEST} levels")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_plain(item, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number that is not finite ({value})")
    elif isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError("an integer of more than 64 bits")
