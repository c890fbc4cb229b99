"""The model that comes with the package."""

from __future__ import annotations

from pathlib import Path

BASE_MODEL = "mmh-base"
"""Its name, which every command takes for a model and uses where none is named."""

_FOLDER = Path(__file__).with_name("weights") / BASE_MODEL


def shipped_bundle(name: str) -> Path | None:
    """Bundle folder of a model that the package brings; None of any other."""
    return _FOLDER if name == BASE_MODEL else None
