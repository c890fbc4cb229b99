"""`mmh manifest`: opens every image of an archive once, in parallel; the row of a bad file holds the reason."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import nibabel as nib
import numpy as np
import pyarrow as pa

from mmh_ray.bids.manifest import find_images, to_table, write_manifest
from mmh_ray.bids.rows import ManifestRow, Status
from mmh_ray.bids.splits import assign_splits
from mmh_ray.config import Config
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.task_pool import map_unordered
from mmh_ray.errors import ConfigError, DataError, data_error
from mmh_ray.imaging.nifti import read_header
from mmh_ray.imaging.volume import READING_BYTES_PER_VOXEL, check_memory, read_volume
from mmh_ray.object_store import loggable_uri
from mmh_ray.progress import progress
from mmh_ray.provenance import sha256_file
from mmh_ray.staging import staged

log = logging.getLogger(__name__)


MOST_BYTES_UNSEEN = 2**30
"""Larger files are hashed after they were read: their first bytes may already show that they are not scans."""


def build_manifest(bids: str, out: str, config: Config) -> pa.Table:
    """Find, probe and split the images of a BIDS archive and write the manifest, ordered by `image_id`.

    Parameters
    ----------
    bids:
        Folder of the archive, readable from every node, or its URI in an object store.
    out:
        Parquet file to write, local or a URI.
    config:
        Its `manifest` section is used.

    Raises
    ------
    DataError
        If the archive has no image or no site at all.
    ConfigError
        If the archive does not exist, `manifest.site_pattern` is unusable, or ``out`` is a folder or cannot be written.
    """
    if os.path.isdir(out):
        raise ConfigError(f"{out}: a folder", "a file to write", f"Write for example {Path(out) / 'manifest.parquet'}.")
    with progress(None, "Finding", unit="images") as advance:
        rows = find_images(bids, config.manifest.site_pattern, advance)
    usable = [row for row in rows if row["status"] == Status.OK]
    probe_all(usable)
    table = to_table(assign_splits(rows, config.manifest))
    try:
        write_manifest(table, out)
    except OSError as error:
        received = f"output {loggable_uri(out)}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(received, "a file that can be written", "Name another file.") from error
    return table


class Facts(TypedDict):
    """The columns of a manifest row that need the file to be opened, as far as they are known."""

    status: str
    reason: str | None
    shape: NotRequired[list[int]]
    spacing_mm: NotRequired[list[float]]
    orientation: NotRequired[str]
    bytes: NotRequired[int]
    sha256: NotRequired[str]


def probe(uri: str, bytes_per_voxel: int = READING_BYTES_PER_VOXEL) -> Facts:
    """Read a file and return the facts about it; never raises an Exception.

    Any error becomes the file's reason; facts of the header are kept even then. A file that needs more memory than is
    free, at ``bytes_per_voxel``, is not read.
    """
    facts: Facts = {"status": Status.OK, "reason": None}
    try:
        with staged(uri) as (path,):
            _add_facts(facts, path, bytes_per_voxel)
    except Exception as error:  # one bad file must not end the job
        facts["status"] = Status.UNUSABLE
        facts["reason"] = str(data_error(error, uri))
    return facts


def _add_facts(facts: Facts, path: str, bytes_per_voxel: int) -> None:
    """Add the facts about a file; raises what is wrong with it."""
    facts["bytes"] = os.path.getsize(path)
    if facts["bytes"] <= MOST_BYTES_UNSEEN:
        facts["sha256"] = sha256_file(path)
    _add_header(facts, path)
    check_memory(path, bytes_per_voxel=bytes_per_voxel)
    read_volume(path)
    if "sha256" not in facts:
        facts["sha256"] = sha256_file(path)


def _add_header(facts: Facts, uri: str) -> None:
    """Add shape, spacing in mm and orientation as far as they can be read; errors are left to :func:`read_volume`."""
    try:
        header = read_header(uri)
        facts["shape"] = list(header.shape)
        affine = header.affine()
    except DataError as error:
        log.debug("%s: header: %s", uri, error)
        return
    with np.errstate(all="ignore"):  # a matrix of huge numbers
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if np.isfinite(affine).all() and np.isfinite(spacing).all():
            facts["spacing_mm"] = [float(size) for size in spacing]
            facts["orientation"] = "".join(code or "?" for code in nib.aff2axcodes(affine))


def _probe_row(row: ManifestRow, bytes_per_voxel: int) -> Facts:
    return probe(row["uri"], bytes_per_voxel)


def probe_all(rows: Sequence[ManifestRow], bytes_per_voxel: int = READING_BYTES_PER_VOXEL) -> None:
    """:func:`probe` the files of ``rows`` in parallel and update the rows in place."""
    if not rows:
        return
    connect()
    for probed in map_unordered(_probe_row, rows, (bytes_per_voxel,), "Reading", "images"):
        facts = probed.result
        if isinstance(facts, Exception):  # the file killed its worker
            remedy = "Look at the file; a machine with more memory may be able to read it."
            died = DataError(f"the worker died on this file ({facts})", "a worker that reads it", remedy)
            facts = Facts(status=Status.UNUSABLE, reason=str(died))
        probed.item.update(facts)
