"""Converts settings from and to plain values: nested dicts, as in YAML and JSON, and dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter


def from_dict(cls: type, tree: Any) -> Any:
    """Build a section, or the whole configuration, from nested mappings.

    Raises
    ------
    ConfigError
        For an unknown key, and for a value of the wrong type or out of bounds.
    """
    return TypeAdapter(cls).validate_python(tree)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict (tuples become lists), for YAML, JSON and :func:`from_dict`."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def flatten(config: Any) -> dict[str, Any]:
    """Leaf values by dotted key, for MLflow parameters."""
    return by_dotted_key(to_dict(config))


def by_dotted_key(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaf values of nested settings by dotted key, as on the command line."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        dotted_key = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= by_dotted_key(value, f"{dotted_key}.")
        else:
            leaves[dotted_key] = value
    return leaves
