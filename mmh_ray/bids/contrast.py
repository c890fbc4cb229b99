"""Flags scans whose name or sidecar says that their contrast is unusual for their sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmh_ray.bids.derivatives import read_sidecar
from mmh_ray.bids.entities import parse

_AGENT = (
    "the model was trained without contrast agents; on three scans, rims at 1.3 and 1.5 times white matter kept "
    ".8 to 1.1 of their contrast"
)
_NONE = {"", "none", "no", "n/a", "na"}
_AGENT_KEYS = ("ContrastBolusAgent", "ContrastBolusIngredient")


def contrast_flags(uri: str | Path) -> tuple[str, ...]:
    """Reasons why a person should look at the harmonized image of this file, from its name and the sidecar beside it.

    An unreadable sidecar is ignored here, because the manifest reports it. Sidecars of folders above are not read.

    Raises
    ------
    DataError
        If the name is not a BIDS name.
    """
    tags = parse(uri).tags
    flags = []
    agent = tags.get("ce") or _agent_of(read_sidecar(uri))
    if agent is not None:
        flags.append(f"contrast agent ({agent}): {_AGENT}")
    if tags.get("part", "mag") != "mag":
        flags.append(f"part-{tags['part']}: not a magnitude image, the only kind that the model knows")
    if "inv" in tags:
        flags.append(f"inv-{tags['inv']}: one inversion of several, whose contrast the model may not know")
    if tags.get("mt") == "on":
        flags.append("mt-on: magnetisation transfer changes the contrast of white matter, which the model may not know")
    return tuple(flags)


def _agent_of(sidecar: Mapping[str, Any]) -> str | None:
    """The contrast agent that a sidecar names, if any."""
    for key in _AGENT_KEYS:
        value = sidecar.get(key)
        parts = value if isinstance(value, list) else [value]
        names = [part.strip() for part in parts if isinstance(part, str)]
        agents = [name for name in names if name.lower() not in _NONE]
        if agents:
            return ", ".join(agents)[:80]
    return None
