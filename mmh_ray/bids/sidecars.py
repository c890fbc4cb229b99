"""JSON sidecars of an archive, and what of them holds for an image by the inheritance of BIDS."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmh_ray.bids.entities import Entities, split_name
from mmh_ray.bids.text import Findings, printable
from mmh_ray.errors import DataError
from mmh_ray.files import is_inside, read_object

KEYS = ("Site", "InstitutionName", "Manufacturer", "MagneticFieldStrength")
"""What is read of a sidecar."""

MOST_BYTES = 16 * 2**20
"""Of a sidecar; ten thousand times what is usual."""

_TWICE = object()


class Sidecar:
    """One JSON file and the images that its name fits; it is read when the first of them asks.

    Parameters
    ----------
    tags, suffix:
        Entities and suffix of its name.
    entry:
        The file.
    root:
        Folder of the archive.
    findings:
        Takes what is to be warned of.
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
        self._content: dict[str, Any] | None = None
        self._was_read = False

    def fits(self, entities: Entities) -> bool:
        """Whether it holds for the image of these entities."""
        return self.suffix == entities.suffix and self.tags.items() <= entities.tags.items()

    def content(self) -> dict[str, Any] | None:
        """Its values of :data:`KEYS`; None, and a warning in the end, where it cannot be read."""
        if not self._was_read:
            self._was_read = True
            try:
                self._content = self._read()
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                self._findings.note("a JSON sidecar that cannot be read", f"{printable(self.path)} is left out: {why}")
        return self._content

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
    """What sidecars say of an image.

    Attributes
    ----------
    values:
        By key; only what no unreadable sidecar may have said otherwise.
    lost:
        Path of a sidecar that holds for the image and cannot be read.
    """

    values: dict[str, Any] = field(default_factory=dict)
    lost: str | None = None


def sidecars_among(entries: Iterable[os.DirEntry[str]], root: Path, findings: Findings) -> list[Sidecar]:
    """The JSON files of a folder that may hold for images, the more specific later."""
    found = []
    for entry in entries:
        if not entry.name.endswith(".json"):
            continue
        try:
            tags, suffix = split_name(entry.name)
        except DataError:
            continue  # dataset_description.json and the like belong to no image
        found.append(Sidecar(tags, suffix, entry, root, findings))
    return sorted(found, key=lambda sidecar: len(sidecar.tags))


def inherited(sidecars: Iterable[Sidecar], entities: Entities) -> Inherited:
    """Of all that hold for an image, the nearer and more specific wins; ``sidecars`` come in this order.

    One that cannot be read may have overruled those before it, so what they say is not known to hold.
    """
    inherited_so_far = Inherited()
    for sidecar in sidecars:
        if not sidecar.fits(entities):
            continue
        content = sidecar.content()
        if content is None:
            inherited_so_far = Inherited(lost=sidecar.path)
        else:
            inherited_so_far.values |= content
    return inherited_so_far


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that is given two values has none."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        is_other_value = key in content and content[key] != value
        content[key] = _TWICE if is_other_value else value
    return content
