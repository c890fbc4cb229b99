"""Records the conditions of an evaluation; two evaluations can be compared only if all of them are equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from mmh_ray.config import Config
from mmh_ray.evaluation.inputs.records import IMAGE_COLUMNS, ImageRecord
from mmh_ray.evaluation.metrics import METRICS_VERSION
from mmh_ray.object_store import Store, is_remote, join_uri
from mmh_ray.provenance import hash_of
from mmh_ray.staging import size_of


def conditions(
    records: Iterable[ImageRecord], truth: str | None, config: Config, target: str | None = None
) -> dict[str, Any]:
    """Facts, masks, labels and truth of the scored images, target site, settings, and the version of the metrics.

    Long values are hashed. Masks, labels and truth are compared by the names and sizes of their files, because reading
    them would take as long as scoring.
    """
    records = sorted(records, key=lambda record: record.image_id)
    facts = [[getattr(record, column) for column in IMAGE_COLUMNS] for record in records]
    mask_paths = []
    label_paths = []
    for record in records:
        mask_paths += [uri for uri in (record.mask_uri, record.lesion_uri) if uri]
        if record.labels_uri:
            label_paths.append(record.labels_uri)
    has_cnn = config.evaluate.cnn != "none"
    return {
        "facts": hash_of(facts),
        "masks": _hash_of_sizes(mask_paths),
        "labels": _hash_of_sizes(label_paths),
        "label_table": config.evaluate.label_table,
        "truth": None if truth is None else _hash_of_sizes(_truth_files(truth, records)),
        "target": target,
        "cnn": has_cnn,
        "style": asdict(config.style) if has_cnn or target else None,
        "seed": config.evaluate.seed,
        "measures": METRICS_VERSION,
    }


def differing_conditions(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the conditions that differ, or that only one of the two has."""
    differing = []
    for name in sorted({*one, *other}):
        is_in_both = name in one and name in other
        if not is_in_both or one[name] != other[name]:
            differing.append(name)
    return differing


def _truth_files(truth: str, records: Iterable[ImageRecord]) -> list[str]:
    files = []
    for subject in sorted({record.subject for record in records}):
        if is_remote(truth):
            store = Store(join_uri(truth, f"sub-{subject}"))
            files += [store.uri_of(file.name) for file in store.files() if fnmatch(file.name, "*.nii*")]
        else:
            files += [str(path) for path in sorted(Path(truth, f"sub-{subject}").rglob("*.nii*"))]
    return files


def _hash_of_sizes(places: Iterable[str]) -> str:
    sizes = [(PurePosixPath(place).name, size_of(place)) for place in places]
    return hash_of(sizes)
