"""The manifest: one row per image of a BIDS archive, from names, tables and sidecars; no voxel is read here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from mmh_ray.bids.archive import Archive
from mmh_ray.bids.remote_archive import at_store, outline
from mmh_ray.bids.rows import ManifestRow
from mmh_ray.bids.schema import SCHEMA
from mmh_ray.object_store import is_remote, loggable_uri, open_folder
from mmh_ray.provenance import whole_file
from mmh_ray.tables import read_table


def find_images(
    bids_root: str | Path,
    site_pattern: str | None = None,
    advance: Callable[[int], object] = lambda count: None,
    require_site: bool = True,
) -> list[ManifestRow]:
    """A row per image of an archive (never derivatives, sourcedata or hidden files), ordered by `image_id`.

    Those of use are NIfTI files in `sub-*/[ses-*/]anat/`. Everything else that looks like an image of a subject is a row
    with its reason; what looks like one outside the folders of subjects is named in a warning.

    Parameters
    ----------
    bids_root:
        Folder of the archive, or its URI in an object store.
    site_pattern:
        Regular expression with a group `site`, searched in the relative path where tables and sidecars give no site.
    advance:
        Called with 1 for every image found.
    require_site:
        Whether an image without a site cannot be used, and an archive without any is refused.

    Returns
    -------
    list[ManifestRow]
        Keys of :data:`SCHEMA`. What cannot be used (name, format, place, link out of the archive, no site, second file of an
        image, a sessions or scans table that cannot be read) has status `unusable` and its reason, as has a folder that
        cannot be read; `shape` to `sha256` and `split` are still None.

    Raises
    ------
    DataError
        If every image's site is missing, its participants.tsv is there and cannot be read, or it holds no
        image in its place; if an object store cannot be listed or read.
    ConfigError
        If there is no such folder or bucket, or ``site_pattern`` is no regular expression with a group `site`.
    """
    if is_remote(str(bids_root)):
        with outline(str(bids_root)) as folder:
            found = Archive(folder, site_pattern, require_site).all_rows(advance)
            rows = at_store(found, folder, str(bids_root))
    else:
        rows = Archive(bids_root, site_pattern, require_site).all_rows(advance)
    return sorted(rows, key=lambda row: row["image_id"])


def to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of :data:`SCHEMA`."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def write_manifest(table: pa.Table, path: str | Path) -> None:
    """Write the manifest, whole or not at all, to a local path or a URI such as s3://bucket/manifest.parquet."""
    filesystem, key = _located(path)
    if filesystem is not None:
        content = pa.BufferOutputStream()
        pq.write_table(table, content)
        with filesystem.open_output_stream(str(key)) as sink:
            sink.write(content.getvalue())
        return
    with whole_file(path) as partial:
        pq.write_table(table, partial)


def read_manifest(path: str | Path) -> pa.Table:
    """Read a manifest from a local path or a URI.

    Raises
    ------
    DataError
        If there is no such file, it is no Parquet file, or no manifest of this version.
    ConfigError
        If no such store can be opened.
    """
    remedy = "Build it with `mmh manifest BIDS manifest.parquet`."
    filesystem, key = _located(path)
    return read_table(key, SCHEMA, "manifest", remedy, filesystem, loggable_uri(str(path)))


def _located(path: str | Path) -> tuple[pa.fs.FileSystem | None, str | Path]:
    """File system and path of a URI; a local path as it is, without one."""
    if "://" not in str(path):
        return None, path
    return open_folder(str(path))
