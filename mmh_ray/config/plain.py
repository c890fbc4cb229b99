"""Settings from and to plain values: nested dicts, as YAML and JSON have them, and dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter


def from_dict(cls: type, tree: Any) -> Any:
    """Build a section, or the whole configuration, from nested mappings.

    Raises
    ------
    ConfigError
        For an unknown key (the valid ones are listed), a value of the wrong type or out of its bounds.
    """
    return TypeAdapter(cls).validate_python(tree)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict (tuples become lists) that YAML, JSON and :func:`from_dict` take."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def flatten(config: Any) -> dict[str, Any]:
    """Dotted keys to leaf values, as MLflow parameters want them."""
    return by_dotted_key(to_dict(config))


def by_dotted_key(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings by dotted key, as the command line takes them."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        dotted_key = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= by_dotted_key(value, f"{dotted_key}.")
        else:
            leaves[dotted_key] = value
    return leaves
