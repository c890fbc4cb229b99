"""Selects images by their entities with the JSON files that PyBIDS and fMRIPrep call BIDS filters.

    {"t1w": {"session": "02", "acquisition": null}, "flair": {"run": [1, 2]}}

An image is left out if it does not match the query of its sequence. A sequence without a query keeps all its images.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmh_ray.bids.entities import Entities
from mmh_ray.errors import ConfigError
from mmh_ray.files import read_object

SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "PDT2", "UNIT1", "inplaneT1", "inplaneT2", "angio")
"""BIDS suffixes that can have a query; the query's name is the suffix in lower case."""

ENTITIES = {
    "subject": "sub",
    "session": "ses",
    "sample": "sample",
    "acquisition": "acq",
    "ceagent": "ce",
    "tracer": "trc",
    "staining": "stain",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "modality": "mod",
    "echo": "echo",
    "flip": "flip",
    "inversion": "inv",
    "mt": "mt",
    "part": "part",
    "proc": "proc",
    "space": "space",
    "chunk": "chunk",
    "desc": "desc",
}
"""Names of entities in PyBIDS to their names in file names."""

ANY = "*"
"""Matches any label. JSON's null matches images without the entity."""

_OTHERS = ("datatype", "suffix", "extension")
"""Names in a query that are not entities; only the values that all images of the query have are accepted."""

Label = str | int | None


@dataclass(frozen=True)
class Filters:
    """Queries by BIDS suffix.

    Attributes
    ----------
    queries:
        Suffix to required entities: each key as in file names, with labels of which one must match.
    """

    queries: Mapping[str, Mapping[str, tuple[Label, ...]]]

    def keeps(self, entities: Entities) -> bool:
        """Whether an image is selected."""
        query = self.queries.get(entities.suffix, {})
        tags = entities.tags
        return all(_matches(tags.get(key), labels) for key, labels in query.items())


NO_FILTERS = Filters({})
"""Keeps every image."""


def read_filters(path: str | Path) -> Filters:
    """Read filters from a JSON file.

    Raises
    ------
    ConfigError
        If it cannot be read, or has an unknown query, entity or value.
    """
    try:
        content = read_object(path, pairs=_each_key_once)
    except (OSError, ValueError) as error:
        remedy = 'Write it as {"t1w": {"session": "02"}}.'
        raise ConfigError(f"filter file {path}: {error}", "a file with one JSON object", remedy) from error
    suffix_of = {suffix.lower(): suffix for suffix in SUFFIXES}
    queries: dict[str, dict[str, tuple[Label, ...]]] = {}
    for name, query in content.items():
        if name not in suffix_of:
            raise _unknown(f"filter file {path}: query {name!r}", name, suffix_of)
        suffix = suffix_of[name]
        queries[suffix] = _read_query(query, suffix, f"filter file {path}: query {name!r}")
    return Filters(queries)


def _read_query(query: Any, suffix: str, where: str) -> dict[str, tuple[Label, ...]]:
    if not isinstance(query, dict):
        raise ConfigError(f"{where}: {query!r}", "an object of entities", 'Write it as {"session": "02"}.')
    labels_of: dict[str, tuple[Label, ...]] = {}
    for name, value in query.items():
        labels = _labels(value, f"{where}: {name}")
        if name in ENTITIES:
            labels_of[ENTITIES[name]] = _without_prefix(labels, ENTITIES[name])
        elif name in _OTHERS:
            _check_other(name, labels, suffix, where)
        else:
            raise _unknown(f"{where}: entity {name!r}", name, (*ENTITIES, *_OTHERS))
    return labels_of


def _labels(value: Any, where: str) -> tuple[Label, ...]:
    values = value if isinstance(value, list) else [value]
    for label in values:
        is_label = label is None or isinstance(label, str | int)
        if not is_label or isinstance(label, bool):
            expected = 'a label, a number, null (not there), "*" (there), or a list of them'
            raise ConfigError(f"{where}: {label!r}", expected, "Change it, or leave it out.")
    if not values:
        raise ConfigError(f"{where}: an empty list", "at least one label", "Leave the entity out to take all.")
    return tuple(values)


def _without_prefix(labels: Iterable[Label], key: str) -> tuple[Label, ...]:
    """Labels without the entity's prefix: `sub-01` means `01`."""
    return tuple(label.removeprefix(f"{key}-") if isinstance(label, str) else label for label in labels)


def _check_other(name: str, labels: tuple[Label, ...], suffix: str, where: str) -> None:
    """Refuse a datatype, suffix or extension that no image of this query has, because nothing would be selected."""
    possible_labels: dict[str, tuple[str, ...]] = {
        "datatype": ("anat",),
        "suffix": (suffix,),
        "extension": (".nii.gz", ".nii", "nii.gz", "nii"),
    }
    possible = possible_labels[name]
    for label in labels:
        if label not in possible:
            expected = f"{name} {' or '.join(possible)}"
            raise ConfigError(f"{where}: {name} {label!r}", expected, "Change it, or leave it out.")


def _matches(tag: str | None, labels: Iterable[Label]) -> bool:
    for label in labels:
        if label is None:
            is_match = tag is None
        elif label == ANY:
            is_match = tag is not None
        elif isinstance(label, int):  # as in PyBIDS, 1 also matches run-01
            is_match = tag is not None and tag.isdecimal() and int(tag) == label
        else:
            is_match = tag == label
        if is_match:
            return True
    return False


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} twice")
    return content


def _unknown(received: str, name: str, known: Iterable[str]) -> ConfigError:
    names = list(known)
    similar = difflib.get_close_matches(name, names, n=1)
    remedy = f"Did you mean {similar[0]!r}?" if similar else "Remove it from the file: mmh_ray does not use it."
    return ConfigError(received, f"one of {', '.join(names)}", remedy)
