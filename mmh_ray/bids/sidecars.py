"""Reads an archive's JSON sidecars, and combines those that apply to an image by the inheritance principle of BIDS."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmh_ray.bids.entities import Entities, split_name
from mmh_ray.bids.text import Findings, printable
from mmh_ray.errors import DataError
from mmh_ray.files import is_inside, read_object

KEYS = ("Site", "InstitutionName", "Manufacturer", "MagneticFieldStrength")
"""Keys that are read from a sidecar."""

MOST_BYTES = 16 * 2**20
"""Most bytes of a sidecar, ten thousand times the usual size."""

_TWICE = object()


class Sidecar:
    """One JSON file; it is read when the first image needs it.

    Parameters
    ----------
    tags, suffix:
        Entities and suffix of its name.
    entry:
        The file.
    root:
        Folder of the archive.
    findings:
        Collects warnings.
    """

    def __init__(
        self, tags: dict[str, str], suffix: str, entry: os.DirEntry[str], root: Path, findings: Findings
    ) -> None:
        self.tags = tags
        self.suffix = suffix
        self.path = entry.path
        self._entry = entry
        self._root = root
        self._findings = findings

    def fits(self, entities: Entities) -> bool:
        """Whether it applies to an image with these entities."""
        return self.suffix == entities.suffix and self.tags.items() <= entities.tags.items()

    @cached_property
    def content(self) -> dict[str, Any] | None:
        """Its values of :data:`KEYS`; None if it cannot be read, which is noted for a warning."""
        try:
            return self._read()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            self._findings.note("a JSON sidecar that cannot be read", f"{printable(self.path)} is left out: {why}")
            return None

    def _read(self) -> dict[str, Any]:
        if self._entry.is_symlink() and not is_inside(self.path, self._root):
            raise ValueError("a link out of the archive")
        content = read_object(self.path, MOST_BYTES, _pairs)
        ambiguous = [key for key in KEYS if content.get(key) is _TWICE]
        if ambiguous:
            raise ValueError(f"{ambiguous[0]} twice, with different values")
        return {key: content[key] for key in KEYS if key in content}


@dataclass
class Inherited:
    """Combined values of the sidecars of an image.

    Attributes
    ----------
    values:
        By key; without values that an unreadable sidecar may have overridden.
    unreadable:
        Path of a sidecar that applies to the image and cannot be read.
    """

    values: dict[str, Any] = field(default_factory=dict)
    unreadable: str | None = None


def sidecars_among(entries: Iterable[os.DirEntry[str]], root: Path, findings: Findings) -> tuple[Sidecar, ...]:
    """The JSON files of a folder that may apply to images, the most specific last."""
    sidecars = []
    for entry in entries:
        if not entry.name.endswith(".json"):
            continue
        try:
            tags, suffix = split_name(entry.name)
        except DataError:
            continue  # dataset_description.json and the like belong to no image
        sidecars.append(Sidecar(tags, suffix, entry, root, findings))
    return tuple(sorted(sidecars, key=lambda sidecar: len(sidecar.tags)))


def inherited(sidecars: Iterable[Sidecar], entities: Entities) -> Inherited:
    """Values of all sidecars that apply to an image; ``sidecars`` are ordered, and later ones override earlier ones.

    An unreadable sidecar may have overridden all values before it, so these are dropped.
    """
    inherited_so_far = Inherited()
    for sidecar in sidecars:
        if not sidecar.fits(entities):
            continue
        if sidecar.content is None:
            inherited_so_far = Inherited(unreadable=sidecar.path)
        else:
            inherited_so_far.values |= sidecar.content
    return inherited_so_far


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary; a key with two different values is marked by ``_TWICE``."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        is_other_value = key in content and content[key] != value
        content[key] = _TWICE if is_other_value else value
    return content
