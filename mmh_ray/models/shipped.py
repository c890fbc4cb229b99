"""Finds the model that is shipped with the package."""

from __future__ import annotations

from pathlib import Path

BASE_MODEL = "mmh-base"
"""Name of the shipped model, the default of every command."""

_FOLDER = Path(__file__).with_name("weights") / BASE_MODEL


def shipped_bundle(name: str) -> Path | None:
    """Bundle folder of the shipped model; None for any other name."""
    return _FOLDER if name == BASE_MODEL else None
