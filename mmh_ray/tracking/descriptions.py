"""Describes registered models and their versions in the registry."""

from __future__ import annotations

from pathlib import Path

from mmh_ray.files import read_bytes
from mmh_ray.tracking.runs import shorten
from mmh_ray.tracking.store import mlflow_client

CARD = "MODEL_CARD.md"
"""File in a bundle that describes its model or target."""
DESCRIPTION_LENGTH = 5000
"""MLflow's limit on the length of a description."""

_GLOBAL = """Removes the scanner's style from brain MRI, so that scans of different sites can be analysed together in
research. It is not a medical device.

Each version is described by its model card: sequences, training data, validation, limits.

    mmh harmonize BIDS OUT --model models:/{name}@champion
"""
_TARGET = """Gives harmonized brain MRI the style of one site, on top of the global model named in each version.
It is not a medical device.

Each version is described by its model card: images of the site, validation, limits.

    mmh harmonize BIDS OUT --target models:/{name}@champion
"""


def describe(name: str, version: str, bundle: Path, is_target: bool) -> None:
    """Describe a version by its model card, and the model in a few words if it has no description yet."""
    client = mlflow_client()
    card = bundle / CARD
    if card.is_file():
        text = read_bytes(card).decode("utf-8", errors="replace")
        client.update_model_version(name, version, description=shorten(text, DESCRIPTION_LENGTH))
    if not client.get_registered_model(name).description:
        about = _TARGET if is_target else _GLOBAL
        client.update_registered_model(name, description=about.format(name=name))
