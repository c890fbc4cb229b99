"""`mmh prepare`: brings every usable image of a manifest onto the working grid, in one Ray task per shard of the store.

Volumes in the store that were made from the same inputs and settings are kept; the others are prepared. The row of a
bad image holds the reason. Finished shards of a killed run are used again.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from mmh_ray import shards
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.bids.rows import PreparedRow, Problem, Status
from mmh_ray.config import Config, GridConfig, PrepareConfig, QualityConfig
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.metrics import add_wait, count_image, set_queue
from mmh_ray.errors import DataError, MMHError, data_error, naming_mask
from mmh_ray.imaging.preprocess import Prepared, prepare_volume
from mmh_ray.imaging.volume import check_memory, read_mask, read_volume
from mmh_ray.progress import progress
from mmh_ray.provenance import hash_of, sha256_file
from mmh_ray.quality.checks import check_prepared
from mmh_ray.quality.describe import describe_scan
from mmh_ray.staging import staged, staged_scan

log = logging.getLogger(__name__)

METHOD_VERSION = 5
"""Part of the provenance of prepared volumes: raise it when the same inputs and settings give other voxels.

Reruns of `mmh harmonize` do not compare it: they compare scan, model and settings."""

LEAST_VOLUMES = 4
"""Fewest volumes of a task: smaller tasks are not worth their start."""

MOST_TASKS = 1024
"""Tasks among which an archive is divided. Their number, and so the shards, must not depend on the current cluster."""

_READERS = 16


class Image(TypedDict):
    """An image to prepare: some columns of the manifest, and a hash of everything that affects its voxels."""

    image_id: str
    subject: str | None
    session: str | None
    site: str | None
    sequence: str
    split: str | None
    uri: str
    mask_uri: str | None
    sha256: str
    status: str
    provenance: str | None
    """Hash of everything that affects the prepared voxels; None if the mask cannot be read."""


_COLUMNS = [name for name in Image.__annotations__ if name != "provenance"]
_FACTS = ("image_id", "subject", "session", "site", "sequence", "split")
"""Columns of the manifest that may change (a new split, a corrected site) without changing the voxels."""


class PrepareSettings(NamedTuple):
    """Settings that affect how an image is prepared, and whether it is refused."""

    grid: GridConfig
    prepare: PrepareConfig
    quality: QualityConfig


@dataclass(frozen=True)
class Outcome:
    """Numbers of images that were prepared, that were up to date, and that could not be prepared."""

    done: int
    skipped: int
    failed: int


def prepare(manifest: str, out: str, config: Config) -> Outcome:
    """Prepare images that are missing or changed; the store then holds exactly the manifest's usable images.

    Parameters
    ----------
    manifest:
        Path or URI of the manifest. Sequences that are not in ``config.model.sequences`` are left out, and logged.
    out:
        Folder or URI of the store.
    config:
        Uses ``grid``, ``prepare``, ``model.sequences``, and the bounds of ``quality`` for refusing scans.

    Raises
    ------
    DataError
        If the manifest or an existing store cannot be read, or the manifest holds no usable image of these sequences.
    ConfigError
        If ``out`` is a folder with anything but a store.
    """
    if "://" not in out:
        out = str(Path(out).absolute())
    existing_shards = shards.check_own(out)
    images = _images(manifest, config.model.sequences)
    _add_provenance(images, config)
    prepared_before = _prepared_before(out, existing_shards)
    kept: list[PreparedRow] = []
    pending: list[Image] = []
    for image in images:
        key = (image["image_id"], image["provenance"])
        if key in prepared_before:
            kept.append(cast(PreparedRow, {**prepared_before[key], **_facts(image)}))
        else:
            pending.append(image)
    prepared = _prepare_all(pending, out, config) if pending else []
    index = [*kept, *prepared]
    shards.write_index(out, index)
    shards.keep_only(out, {row["shard"] for row in index})
    failed = sum(row["status"] == Status.FAILED for row in prepared)
    outcome = Outcome(done=len(prepared) - failed, skipped=len(kept), failed=failed)
    log.info("prepared %d images, kept %d, failed %d", outcome.done, outcome.skipped, outcome.failed)
    return outcome


def _images(manifest: str, sequences: Sequence[str]) -> list[Image]:
    """Usable images of these sequences; the numbers of the others are logged."""
    rows: list[Image] = read_manifest(manifest).select(_COLUMNS).to_pylist()
    usable = [row for row in rows if row["status"] == Status.OK]
    if len(usable) < len(rows):
        log.warning("%d images are not usable: see the manifest's column `reason`", len(rows) - len(usable))
    images = [row for row in usable if row["sequence"] in sequences]
    left_out = Counter(row["sequence"] for row in usable if row["sequence"] not in sequences)
    for sequence, count in sorted(left_out.items()):
        log.warning("%d images of %s left out: not in model.sequences", count, sequence)
    if not images:
        remedy = "Set model.sequences to the archive's suffixes, or see the manifest's column `reason`."
        raise DataError(f"{manifest}: no usable image", f"images of {', '.join(sequences)}", remedy)
    return images


def _add_provenance(images: list[Image], config: Config) -> None:
    """Set ``provenance`` of each image."""
    mask_uris = sorted({image["mask_uri"] for image in images if image["mask_uri"]})
    with ThreadPoolExecutor(_READERS) as pool:
        mask_hashes = dict(zip(mask_uris, pool.map(_hash_of_file, mask_uris), strict=True))
    prepare_settings = dataclasses.asdict(config.prepare)
    del prepare_settings["shard_volumes"]  # how volumes are packed does not change them
    common: dict[str, Any] = {
        "grid": dataclasses.asdict(config.grid),
        "prepare": prepare_settings,
        "refused": (config.quality.least_fit, config.quality.least_contrast),
        "version": {"method": METHOD_VERSION, "format": shards.VERSION.decode()},
    }
    for image in images:
        mask_hash: str | None = None
        if image["mask_uri"] is not None:
            mask_hash = mask_hashes.get(image["mask_uri"])
            if mask_hash is None:
                image["provenance"] = None
                continue
        image["provenance"] = hash_of({**common, "input": image["sha256"], "mask": mask_hash})


def _hash_of_file(uri: str) -> str | None:
    try:
        with staged(uri) as (path,):
            return sha256_file(path)
    except (OSError, MMHError) as error:
        log.debug("%s: %s", uri, error)  # preparing the image fails as well, and gives the reason
        return None


def _prepared_before(out: str, existing_shards: set[str]) -> dict[tuple[str, str | None], PreparedRow]:
    """Rows of volumes in the store, by image id and provenance: of the index, and of shards that it lacks."""
    rows: list[PreparedRow] = []
    indexed_shards = set()
    if shards.INDEX in shards.names_in(out):
        for row in shards.PreparedStore(out).index:
            if row["status"] == Status.OK and row["shard"] in existing_shards:
                rows.append(row)
                indexed_shards.add(row["shard"])
    for name in sorted(existing_shards - indexed_shards):
        rows += shards.shard_entries(out, name)

    return {(row["image_id"], row["provenance"]): row for row in rows}


def _facts(image: Image) -> dict[str, Any]:
    """The columns of :data:`_FACTS`."""
    return {name: image[name] for name in _FACTS}  # type: ignore[literal-required]


def _prepare_all(images: list[Image], out: str, config: Config) -> list[PreparedRow]:
    """Prepare images and return their index rows; few tasks are submitted at a time, however long the manifest is.

    This does not use :func:`~mmh_ray.distributed.task_pool.map_unordered`, because the task of a worker that died is
    divided into smaller ones, and because progress counts images while a task has many.
    """
    connect()
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    settings = PrepareSettings(config.grid, config.prepare, config.quality)
    remote_task = ray.remote(num_cpus=1, max_retries=1)(prepare_shard)
    waiting = deque(share_out(images, config.prepare.shard_volumes))
    pending: dict[ray.ObjectRef, list[Image]] = {}
    rows: list[PreparedRow] = []
    with progress(len(images), "Preparing", unit="images") as advance:
        while waiting or pending:
            while waiting and len(pending) < 2 * cpus:
                part = waiting.popleft()
                named_task = remote_task.options(name=_task_name(part))
                pending[named_task.remote(part, out, settings)] = part
            set_queue("prepare", sum(len(part) for part in waiting))
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            part = pending.pop(ready)
            try:
                finished = ray.get(ready)
            except RayTaskError as error:  # an error of the store, not of an image
                raise error.cause or error from error
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
                if len(part) > 1:  # one of the images killed the worker: find out which
                    log.warning("a worker died over %d images; trying them one by one", len(part))
                    waiting.extend([image] for image in part)
                    continue
                problem = _problem(part[0], error)
                finished = [_failed(part[0], problem)]
                count_image("prepare", finished[0], problem)  # the worker, which counts the others, is gone
            for row in finished:
                if row["status"] == Status.FAILED:
                    log.warning("%s: %s", row["image_id"], row["reason"])
            rows += finished
            advance(len(finished))
    return rows


def _task_name(part: list[Image]) -> str:
    """Name of a task on the dashboard."""
    others = f" and {len(part) - 1} more" if len(part) > 1 else ""
    return f"prepare {part[0]['image_id']}{others}"


def share_out(images: list[Image], shard_volumes: int) -> list[list[Image]]:
    """Divide images among tasks by their number alone: the same images give the same shards on any cluster."""
    evenly = math.ceil(len(images) / MOST_TASKS)
    size = min(shard_volumes, max(LEAST_VOLUMES, evenly))
    return [images[start : start + size] for start in range(0, len(images), size)]


def prepare_shard(images: Sequence[Image], out: str, settings: PrepareSettings) -> list[PreparedRow]:
    """Prepare some images, one after the other, into one shard; returns their index rows.

    An exception fails only its image.
    """
    failed: list[PreparedRow] = []

    def volumes() -> Iterator[dict[str, Any]]:
        for image in images:
            start = time.perf_counter()
            try:
                volume = prepare_image(image, settings)
            except Exception as error:
                problem = _problem(image, error)
                failed.append(_failed(image, problem))
                count_image("prepare", failed[-1], problem)
                continue
            seconds = time.perf_counter() - start
            count_image("prepare", {**_facts(image), "status": Status.OK, "seconds": seconds})
            yield volume

    name = shards.write_shard(out, volumes())
    written = shards.shard_entries(out, name) if name else []
    return failed + written


def prepare_image(image: Image, settings: PrepareSettings) -> dict[str, Any]:
    """Read one image with its mask and bring it to the working grid, as a row for :func:`shards.write_shard`.

    Raises
    ------
    DataError
        If the file has changed since the manifest was built, or the image or its mask cannot be used.
    RefusedError
        If `mmh harmonize` would refuse the scan, because no model should learn from it.
    """
    start = time.perf_counter()
    with staged_scan(image["uri"], image["mask_uri"]) as (path, mask_path):
        digest = sha256_file(path)
        add_wait("prepare", time.perf_counter() - start)
        if digest != image["sha256"]:
            received = f"{image['uri']}: changed since the manifest"
            raise DataError(received, "the same bytes", "Build the manifest again.")
        prepared = _prepared(path, mask_path, image["sequence"], settings)
    registration = prepared.registration
    return _facts(image) | {
        "provenance": image["provenance"],
        "image": prepared.image,
        "mask": prepared.mask,
        "affine": prepared.affine,
        "registration": registration.matrix if registration else None,
        "quality": registration.quality if registration else None,
        "low": prepared.scaling.low,
        "high": prepared.scaling.high,
        "quantiles": prepared.quantiles,
        "tissues": prepared.tissues,
        "steps": list(prepared.steps),
    }


def check_row(row: Mapping[str, Any], settings: PrepareSettings) -> None:
    """Prepare the image of a manifest row and drop it; raises why it cannot be harmonized or would be refused."""
    with staged_scan(row["uri"], row["mask_uri"]) as (path, mask_path):
        _prepared(path, mask_path, row["sequence"], settings)


def _prepared(path: str, mask_path: str | None, sequence: str, settings: PrepareSettings) -> Prepared:
    start = time.perf_counter()
    check_memory(path)
    volume = read_volume(path)
    mask = read_mask(mask_path) if mask_path else None
    add_wait("prepare", time.perf_counter() - start)
    grid, prepare_config, quality = settings
    with naming_mask(mask_path):
        prepared = prepare_volume(volume, mask, grid, prepare_config)
        figures = describe_scan(volume, prepared.brain, prepared.registration, prepared)
        check_prepared(
            sequence=sequence,
            figures=figures,
            config=quality,
            volume=volume,
            prepared=prepared,
            grid=grid,
            settings=prepare_config,
        )
    return prepared


def _problem(image: Image, error: Exception) -> Problem:
    return Problem.of(data_error(error, image["uri"]))


def _failed(image: Image, problem: Problem) -> PreparedRow:
    """The index row of an image that could not be prepared."""
    row = cast(PreparedRow, dict.fromkeys(shards.INDEX_SCHEMA.names) | _facts(image))
    row["provenance"] = image["provenance"]
    row["status"] = Status.FAILED
    row["reason"] = problem.text
    return row
