"""Loads a configuration from a YAML file and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmh_ray.config.config import Config
from mmh_ray.config.plain import from_dict
from mmh_ray.errors import ConfigError
from mmh_ray.files import read_bytes
from mmh_ray.yaml_text import MOST_BYTES, load_yaml

MOST_SHOWN = 200
"""Most characters of an override in an error."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (without one: all defaults) and apply `section.key=value` overrides; the last one wins.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not a regular file, is too large, or is not plain YAML
        (:func:`mmh_ray.yaml_text.load_yaml`). Also for an unknown key, and a value of the wrong type or out of bounds.
    """
    tree = {} if path is None else _read(path)
    for override in overrides:
        dotted_key, value = _parse(override)
        _put(tree, dotted_key.split("."), value)
    return from_dict(Config, tree)


def _read(path: str | Path) -> dict[str, Any]:
    """Sections of a YAML file; an empty file has none."""
    try:
        tree = load_yaml(read_bytes(path, MOST_BYTES))
    except (OSError, ValueError, yaml.YAMLError) as error:
        received = f"{path}: {error}"
        raise ConfigError(received, "a readable YAML file", "Check the path and its indentation.") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        received = f"{path}: a {type(tree).__name__}"
        raise ConfigError(received, "sections, each with its keys", "Write for example train: {steps: 100}.")
    return tree


def _parse(override: str) -> tuple[str, Any]:
    """Dotted key and value of an override."""
    received = f"override {override[:MOST_SHOWN]!r}"
    dotted_key, equals_sign, text = override.partition("=")
    if not equals_sign:
        raise ConfigError(received, "section.key=value", "Write for example train.steps=100.")
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{received}: {error}", "a YAML value after =", "Quote or close it.") from error
    return dotted_key.strip(), value


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set the value at a dotted key; a mapping is merged into the existing one, because it may be only a part of it."""
    *sections, last_key = keys
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override of {'.'.join(keys)}", "a section above the key", "Check the dotted key.")
    present = tree.get(last_key)
    if isinstance(present, dict) and isinstance(value, dict):
        value = present | value
    tree[last_key] = value
