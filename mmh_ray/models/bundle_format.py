"""Reads and writes bundles of both kinds: folders with facts in JSON and weights in safetensors.

Each kind of bundle is one :class:`BundleFormat`. For the meaning of the facts see :mod:`mmh_ray.models.bundle` (global
model) and :mod:`mmh_ray.models.target.bundle` (adapters of one site).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from mmh_ray.errors import ModelError
from mmh_ray.models.bundle_files import MOST_FACTS, check_kinds, check_plain, read_part
from mmh_ray.provenance import code_version, write_json

CARD = "MODEL_CARD.md"
"""File that describes the bundle for people. It is not part of the bundle's hash."""
OTHER_RELEASE = "Use the release of mmh-ray that wrote it (code_version tells which)."
"""Remedy for a bundle with settings that are unknown to this release."""


@dataclass(frozen=True)
class BundleFormat:
    """One kind of bundle.

    Attributes
    ----------
    kind:
        Kind of model: `global` or `target`.
    version:
        Version of the layout that this code writes and reads.
    noun:
        How errors refer to a bundle of this kind.
    facts_file:
        Name of the JSON file.
    facts:
        Keys of the facts besides `format` and `kind`, each with its type.
    rebuild:
        Remedy for a damaged bundle.
    """

    kind: str
    version: int
    noun: str
    facts_file: str
    facts: Mapping[str, type]
    rebuild: str

    def read_facts(self, folder: Path) -> dict[str, Any]:
        """Facts of a bundle of this kind and version: a JSON object with exactly the keys of ``facts``.

        Raises
        ------
        ModelError
            If the file cannot be read (:func:`.bundle_files.read_part`), has another format, kind, key or type, a
            number that is not finite, or values that are nested too deeply.
        """
        place = folder / self.facts_file
        content = read_part(folder, self.facts_file, MOST_FACTS, self.rebuild)
        try:
            facts = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{place}: not JSON ({error})", "a JSON object", self.rebuild) from error
        identity = {"format": self.version, "kind": self.kind}
        recorded = {key: facts.get(key) for key in identity} if isinstance(facts, dict) else facts
        if recorded != identity or any(isinstance(value, bool) for value in recorded.values()):
            received = f"{place}: {str(recorded)[:200]}"
            remedy = f"Use the release of mmh-ray that wrote it, or a bundle made by {code_version()}."
            raise ModelError(received, f"a model bundle with {identity}", remedy)
        check_kinds(facts, dict.fromkeys(identity, object) | dict(self.facts), str(place), self.rebuild)
        try:
            check_plain(facts)
        except ValueError as error:
            raise ModelError(f"{place}: {error}", "plain facts", self.rebuild) from error
        return facts

    def read_weights(self, folder: Path, name: str, most_bytes: int, sha256: str) -> bytes:
        """Content of a weights file; ModelError if it is too large or its checksum differs from that in the facts."""
        content = read_part(folder, name, most_bytes, self.rebuild)
        if hashlib.sha256(content).hexdigest() != sha256:
            received = f"{folder / name}: damaged (other checksum)"
            raise ModelError(received, f"the weights that {self.facts_file} describes", self.rebuild)
        return content

    @contextlib.contextmanager
    def new_folder(self, path: Path) -> Iterator[Path]:
        """Yield a folder to write a bundle into. It replaces ``path`` when the block ends, unless the block raises.

        Raises
        ------
        ModelError
            If ``path`` exists and is not a bundle of this kind.
        """
        is_bundle = (path / self.facts_file).is_file()
        is_empty = path.is_dir() and not any(path.iterdir())
        if path.exists() and not is_bundle and not is_empty:
            expected = f"a new folder or an earlier {self.noun}"
            raise ModelError(f"{path}: holds something else", expected, "Choose another folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
        try:
            yield partial
            partial.chmod(path.parent.stat().st_mode & 0o777)
            _put_folder(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def write_description(self, folder: Path, facts: Mapping[str, Any], card: str) -> None:
        """Write the facts, preceded by format and kind, and the model card."""
        described: dict[str, Any] = {"format": self.version, "kind": self.kind}
        described |= facts
        write_json(folder / self.facts_file, described)
        card_file = folder / CARD
        card_file.write_text(card, encoding="utf-8")


def write_weights(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors; returns the file's SHA-256."""
    content = safetensors.torch.save(dict(state))
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _put_folder(new: Path, path: Path) -> None:
    """Rename the folder into place; an earlier one is renamed first, as a rename cannot replace a full folder."""
    if not path.exists():
        os.replace(new, path)
        return
    earlier = Path(tempfile.mkdtemp(prefix=f".earlier-{path.name}-", dir=path.parent))
    try:
        os.replace(path, earlier)
        os.replace(new, path)
    finally:
        if not path.exists():
            os.replace(earlier, path)
        shutil.rmtree(earlier, ignore_errors=True)
