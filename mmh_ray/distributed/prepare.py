"""`mmh prepare`: every usable image of a manifest onto the working grid, one Ray task per shard of the store.

What is in the store with the same inputs and settings stays; the rest is done; a bad image keeps its row with the
reason. Finished shards of a run that was killed are found again.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from mmh_ray import shards
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config, GridConfig, PrepareConfig, QualityConfig
from mmh_ray.distributed.cluster import connect
from mmh_ray.errors import DataError, data_error, naming_mask
from mmh_ray.imaging.preprocess import Prepared, prepare_volume
from mmh_ray.imaging.volume import check_memory, read_mask, read_volume
from mmh_ray.progress import progress
from mmh_ray.provenance import hash_of, sha256_file
from mmh_ray.quality.checks import check_prepared
from mmh_ray.quality.describe import describe_scan

log = logging.getLogger(__name__)

METHOD_VERSION = 5
"""Part of every provenance: raise it when the same inputs and settings come to give other voxels."""

LEAST_VOLUMES = 4
"""Volumes of a task below which more tasks are not worth their start."""

MOST_TASKS = 1024
"""Tasks among which an archive is shared out. Their number, and so the shards, must not depend on the cluster that happens to be there."""

_IDENTITY = ("image_id", "subject", "session", "site", "sequence", "split")
_COLUMNS = [*_IDENTITY, "uri", "mask_uri", "sha256", "status"]
_READERS = 16

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How many images were prepared now, were there already, and could not be prepared."""

    done: int
    skipped: int
    failed: int


def prepare(manifest: str, out: str, config: Config) -> Outcome:
    """Prepare what is missing or changed; the store then holds exactly the manifest's usable images.

    Parameters
    ----------
    manifest:
        Path or URI of the manifest. Sequences that ``config.model.sequences`` does not name are left out, and logged.
    out:
        Folder or URI of the store.
    config:
        Uses ``grid``, ``prepare``, ``model.sequences``, and of ``quality`` what is refused.

    Raises
    ------
    DataError
        If the manifest or an existing store cannot be read, or the manifest holds no usable image of these sequences.
    ConfigError
        If ``out`` is a folder of something else.
    """
    out = out if "://" in out else str(Path(out).absolute())
    existing = shards.check_own(out)
    rows = _with_provenance(_wanted(manifest, config.model.sequences), config)
    known = _known(out, existing)
    found = [known.get((row["image_id"], row["provenance"])) for row in rows]
    pending = [row for row, entry in zip(rows, found, strict=True) if entry is None]
    kept = [entry | _facts(row) for row, entry in zip(rows, found, strict=True) if entry is not None]
    made = _prepare_all(pending, out, config) if pending else []
    shards.write_index(out, [*kept, *made])
    shards.keep_only(out, {entry["shard"] for entry in [*kept, *made]})
    failed = sum(entry["status"] == "failed" for entry in made)
    outcome = Outcome(len(made) - failed, len(kept), failed)
    log.info("prepared %d images, kept %d, failed %d", outcome.done, outcome.skipped, outcome.failed)
    return outcome


def _wanted(manifest: str, sequences: Sequence[str]) -> list[Row]:
    """Usable rows of these sequences; what is left out is logged by name."""
    rows = read_manifest(manifest).select(_COLUMNS).to_pylist()
    usable = [row for row in rows if row["status"] == "ok"]
    if len(usable) < len(rows):
        log.warning("%d images are not usable: see the manifest's column `reason`", len(rows) - len(usable))
    others = Counter(row["sequence"] for row in usable if row["sequence"] not in sequences)
    for name, count in sorted(others.items()):
        log.warning("%d images of %s left out: not in model.sequences", count, name)
    wanted = [row for row in usable if row["sequence"] in sequences]
    if not wanted:
        remedy = "Set model.sequences to the archive's suffixes, or see the manifest's column `reason`."
        raise DataError(f"{manifest}: no usable image", f"images of {', '.join(sequences)}", remedy)
    return wanted


def _with_provenance(rows: list[Row], config: Config) -> list[Row]:
    """The rows with the hash of all that decides their prepared voxels; None where the mask cannot be read."""
    uris = sorted({row["mask_uri"] for row in rows if row["mask_uri"]})
    with ThreadPoolExecutor(_READERS) as pool:
        masks: dict[str | None, str | None] = dict(zip(uris, pool.map(_digest, uris), strict=True))
    settings = dataclasses.asdict(config.prepare)
    del settings["shard_volumes"]  # how volumes are packed changes none of them
    common: dict[str, Any] = {"grid": dataclasses.asdict(config.grid), "prepare": settings}
    common["refused"] = config.quality.least_fit, config.quality.least_contrast
    common["version"] = {"method": METHOD_VERSION, "format": shards.VERSION.decode()}
    for row in rows:
        mask = masks.get(row["mask_uri"])
        readable = mask is not None or row["mask_uri"] is None
        row["provenance"] = hash_of({**common, "input": row["sha256"], "mask": mask}) if readable else None
    return rows


def _digest(uri: str) -> str | None:
    try:
        return sha256_file(uri)
    except OSError as error:
        log.debug("%s: %s", uri, error)  # the row's own attempt to read it gives the reason
        return None


def _known(out: str, existing: set[str]) -> dict[tuple[str, str], Row]:
    """Volumes that need not be prepared again, by id and provenance: of the index and of shards it lacks."""
    indexed = shards.PreparedStore(out).index if shards.INDEX in shards.names_in(out) else []
    entries = [entry for entry in indexed if entry["status"] == "ok" and entry["shard"] in existing]
    for name in sorted(existing - {entry["shard"] for entry in entries}):
        entries += shards.shard_entries(out, name)
    return {(entry["image_id"], entry["provenance"]): entry for entry in entries}


def _facts(row: Row) -> Row:
    """What the manifest says of an image; may change (a new split, a corrected site) while its voxels stay."""
    return {name: row[name] for name in _IDENTITY}


def _prepare_all(rows: list[Row], out: str, config: Config) -> list[Row]:
    """Index rows of all images; few tasks wait at a time, whatever the length of the manifest."""
    connect()
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(num_cpus=1, max_retries=1)(prepare_shard)
    waiting = deque(_parts(rows, config.prepare.shard_volumes))
    pending: dict[Any, list[Row]] = {}
    entries: list[Row] = []
    with progress(len(rows), "Preparing", unit="images") as advance:
        while waiting or pending:
            while waiting and len(pending) < 2 * cpus:
                part = waiting.popleft()
                pending[task.remote(part, out, config.grid, config.prepare, config.quality)] = part
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            part = pending.pop(ready)
            try:
                finished = ray.get(ready)
            except RayTaskError as error:  # the store itself: no image is to blame
                raise error.cause or error from error
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
                if len(part) > 1:  # one of them took its worker along: find out which
                    log.warning("a worker died over %d images; trying them one by one", len(part))
                    waiting.extend([row] for row in part)
                    continue
                finished = [_failed(part[0], error)]
            for entry in finished:
                if entry["status"] == "failed":
                    log.warning("%s: %s", entry["image_id"], entry["reason"])
            entries += finished
            advance(len(finished))
    return entries


def _parts(rows: list[Row], shard_volumes: int) -> list[list[Row]]:
    """The rows of each task, by nothing but their number: the same rows give the same shards on any cluster."""
    size = min(shard_volumes, max(LEAST_VOLUMES, math.ceil(len(rows) / MOST_TASKS)))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def prepare_shard(
    rows: Sequence[Row], out: str, grid: GridConfig, settings: PrepareConfig, quality: QualityConfig
) -> list[Row]:
    """Prepare some images one after the other into one shard; an exception belongs to its image.

    Returns
    -------
    list[dict]
        Their index rows.
    """
    failed: list[Row] = []

    def prepared() -> Iterator[Row]:
        for row in rows:
            try:
                yield prepare_row(row, grid, settings, quality)
            except Exception as error:
                failed.append(_failed(row, error))

    name = shards.write_shard(out, prepared())
    return failed + (shards.shard_entries(out, name) if name else [])


def prepare_row(row: Row, grid: GridConfig, settings: PrepareConfig, quality: QualityConfig) -> Row:
    """Read one image with its mask and bring it to the working grid, as a row for :func:`shards.write_shard`.

    Raises
    ------
    DataError
        If the file is no longer the manifest's, or the image or its mask cannot be used.
    RefusedError
        If `mmh harmonize` would refuse the scan: no model is to learn from what is no adult's head of this sequence.
    """
    if sha256_file(row["uri"]) != row["sha256"]:
        raise DataError(f"{row['uri']}: changed since the manifest", "the same bytes", "Build the manifest again.")
    result = _prepared(row, grid, settings, quality)
    return _facts(row) | {
        "provenance": row["provenance"],
        "image": result.image,
        "mask": result.mask,
        "affine": result.affine,
        "registration": result.registration.matrix if result.registration else None,
        "quality": result.registration.quality if result.registration else None,
        "low": result.scaling.low,
        "high": result.scaling.high,
        "quantiles": result.quantiles,
        "tissues": result.tissues,
        "steps": list(result.steps),
    }


def check_row(row: Row, settings: tuple[GridConfig, PrepareConfig, QualityConfig]) -> None:
    """Prepare one image and keep nothing: what it raises is why it could not be harmonized, or would be refused."""
    _prepared(row, *settings)


def _prepared(row: Row, grid: GridConfig, settings: PrepareConfig, quality: QualityConfig) -> Prepared:
    check_memory(row["uri"])
    volume = read_volume(row["uri"])
    mask = read_mask(row["mask_uri"]) if row["mask_uri"] else None
    with naming_mask(row["mask_uri"]):
        result = prepare_volume(volume, mask, grid, settings)
        figures = describe_scan(volume, result.brain, result.registration, result)
        check_prepared(row["sequence"], figures, quality, volume, result, grid, settings)
    return result


def _failed(row: Row, error: Exception) -> Row:
    reason = str(data_error(error, row["uri"]))
    return _facts(row) | {"provenance": row["provenance"], "status": "failed", "reason": reason, "shard": None}
