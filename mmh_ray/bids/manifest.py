"""Builds the manifest, one row per image of a BIDS archive, from names, tables and sidecars; reads no voxels."""

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
    """One row per image of an archive (not of derivatives, sourcedata or hidden files), ordered by `image_id`.

    Usable images are NIfTI files in `sub-*/[ses-*/]anat/`. Any other image in a subject's folder gets a row with the
    reason why it is unusable. Images outside the subjects' folders are listed in a warning.

    Parameters
    ----------
    bids_root:
        Folder of the archive, or its URI in an object store.
    site_pattern:
        Regular expression with a group `site`, searched in the relative path if tables and sidecars give no site.
    advance:
        Called with 1 for every image.
    require_site:
        Whether an image without a site is unusable, and an archive without any site is refused.

    Returns
    -------
    list[ManifestRow]
        Keys of :data:`SCHEMA`; `shape` to `sha256` and `split` are still None. An unusable image has status `unusable`
        and the reason: its name, format or place, a link out of the archive, no site, a second file of the same image,
        an unreadable table of sessions or scans. An unreadable folder has such a row, too.

    Raises
    ------
    DataError
        If no image has a site, participants.tsv exists but cannot be read, no image is in its place, or an object store
        cannot be listed or read.
    ConfigError
        If there is no such folder or bucket, or ``site_pattern`` is not a regular expression with a group `site`.
    """
    if is_remote(str(bids_root)):
        with outline(str(bids_root)) as folder:
            local_rows = Archive(folder, site_pattern, require_site).all_rows(advance)
            rows = at_store(local_rows, folder, str(bids_root))
    else:
        rows = Archive(bids_root, site_pattern, require_site).all_rows(advance)
    return sorted(rows, key=lambda row: row["image_id"])


def to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of :data:`SCHEMA`."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def write_manifest(table: pa.Table, path: str | Path) -> None:
    """Write the manifest to a local path or a URI such as s3://bucket/manifest.parquet, whole or not at all."""
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
        If there is no such file, or it is not a manifest of this version.
    ConfigError
        If the store cannot be opened.
    """
    remedy = "Build it with `mmh manifest BIDS manifest.parquet`."
    filesystem, key = _located(path)
    return read_table(key, SCHEMA, "manifest", remedy, filesystem, loggable_uri(str(path)))


def _located(path: str | Path) -> tuple[pa.fs.FileSystem | None, str | Path]:
    """File system and path of a URI; None and the path itself for a local path."""
    if "://" not in str(path):
        return None, path
    return open_folder(str(path))
