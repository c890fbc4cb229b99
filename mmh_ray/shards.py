"""Stores prepared volumes: Parquet shards with one row group per volume, and an index of everything but the voxels.

A store is a local folder or any URI that pyarrow opens (s3://, gs:// ...). The index is written last and defines the
content of the store: a shard that it does not name is new or outdated, and is ignored. Nothing pickled is ever loaded.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from mmh_ray.bids.rows import PreparedRow, Status
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.object_store import loggable_uri, open_folder, open_folder_to_write
from mmh_ray.provenance import hash_of
from mmh_ray.tables import read_table

VERSION = b"3"
INDEX = "index.parquet"
OPEN_SHARDS = 4
"""Most Parquet files that a :class:`PreparedStore` keeps open."""

_PARTIAL = ".partial-"
_SHARD = re.compile(r"shard-[0-9a-f]{16}\.parquet")
_FACTS = [
    pa.field("image_id", pa.string(), nullable=False),
    *(pa.field(name, pa.string()) for name in ("subject", "session", "site", "sequence", "split")),
    pa.field("shape", pa.list_(pa.int32())),
    pa.field("affine", pa.list_(pa.float64())),
    pa.field("registration", pa.list_(pa.float64())),
    pa.field("quality", pa.float64()),
    pa.field("low", pa.float64()),
    pa.field("high", pa.float64()),
    pa.field("quantiles", pa.list_(pa.float32())),
    pa.field("tissues", pa.list_(pa.float32())),
    pa.field("steps", pa.list_(pa.string())),
    pa.field("provenance", pa.string()),
]
_WRITER: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
_METADATA = {b"mmh_prepared_version": VERSION}
SHARD_SCHEMA = pa.schema([*_FACTS, pa.field("image", pa.binary()), pa.field("mask", pa.binary())], metadata=_METADATA)
"""Columns of a shard.

- `shape`: of the working grid.
- `affine`: row by row, working voxels to the scan's millimetres.
- `registration`: likewise, the template's millimetres to the scan's; null if not requested. `quality`: its quality.
- `low`, `high`: the scan's intensities at unit intensity 0 and 1.
- `quantiles`: 257 quantiles of the brain. `tissues`: those of a smoothed copy.
- `steps`: the preparation steps. `provenance`: hash of inputs and settings.
- `image`: little-endian float16 unit intensities. `mask`: packed bits. Both in C order.
"""
INDEX_SCHEMA = pa.schema(
    [
        *_FACTS,
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("row_group", pa.int32()),
    ],
    metadata=_METADATA,
)
"""Columns of the index: `status` is ok or failed, with its `reason`; `shard` and `row_group` locate the voxels."""


def write_shard(uri: str, rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Write volumes one by one, a row group each; the shard appears whole or not at all.

    Parameters
    ----------
    uri:
        Folder or URI of the store; a missing folder is created.
    rows:
        Keys of :data:`SHARD_SCHEMA`, with `image` ``(X, Y, Z)`` float, `mask` ``(X, Y, Z)`` bool, `affine` and
        `registration` ``(4, 4)``. Only one row is in memory at a time.

    Returns
    -------
    str | None
        File name, made from the volumes' ids and provenance; None if there was no row.
    """
    store, folder = _created_folder(uri)
    with _scratch(store, folder) as scratch:
        partial = Path(scratch, "shard.parquet")
        contents = []
        with pq.ParquetWriter(partial, SHARD_SCHEMA, **_WRITER) as writer:
            for row in rows:
                table = pa.Table.from_pylist([_encoded(row)], schema=SHARD_SCHEMA)
                writer.write_table(table)
                contents.append([row["image_id"], row["provenance"]])
        if not contents:
            return None
        digest = hash_of(contents)[:16]
        name = f"shard-{digest}.parquet"
        _publish(store, partial, f"{folder}/{name}")
    return name


def write_index(uri: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Write the index ordered by `image_id`, whole or not at all; an equal index is left unchanged.

    Parameters
    ----------
    rows:
        Keys of :data:`INDEX_SCHEMA`, one row per image.

    Returns
    -------
    bool
        Whether a file was written.
    """
    ordered = sorted(rows, key=lambda row: row["image_id"])
    columns = {}
    for name in INDEX_SCHEMA.names:
        columns[name] = [_flat(row.get(name)) for row in ordered]
    table = pa.table(columns, schema=INDEX_SCHEMA)
    store, folder = _created_folder(uri)
    if INDEX in names_in(uri) and _read_index(uri).equals(table):
        return False
    with _scratch(store, folder) as scratch:
        partial = Path(scratch, INDEX)
        pq.write_table(table, partial, compression="zstd")
        _publish(store, partial, f"{folder}/{INDEX}")
    return True


def _scratch(store: pa.fs.FileSystem, folder: str) -> tempfile.TemporaryDirectory:
    """Folder for a file before it is published; on a local disk in the store itself, so that a rename is enough."""
    place = folder if _is_local(store) else None
    return tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=place)


def shard_entries(uri: str, name: str) -> list[PreparedRow]:
    """Index rows of a shard's volumes, read from the shard without the voxels."""
    store, folder = open_folder(uri)
    with pq.ParquetFile(f"{folder}/{name}", filesystem=store) as shard:
        table = shard.read(columns=[field.name for field in _FACTS])
    rows = _entries(table)
    for row_group, row in enumerate(rows):
        row["status"] = Status.OK
        row["reason"] = None
        row["shard"] = name
        row["row_group"] = row_group
    return rows


def names_in(uri: str) -> set[str]:
    """Names of everything directly inside a folder; empty if it does not exist.

    Raises
    ------
    ConfigError
        If the URI cannot be opened or is a file.
    """
    store, folder = open_folder(uri)
    try:
        if store.get_file_info(folder).type == pa.fs.FileType.File:
            raise ConfigError(f"{loggable_uri(uri)}: a file", "a folder for prepared volumes", "Name a folder.")
        selector = pa.fs.FileSelector(folder, allow_not_found=True)
        return {info.base_name for info in store.get_file_info(selector)}
    except OSError as error:
        received = f"{loggable_uri(uri)}: {error}"
        raise ConfigError(received, "a folder that can be listed", "Check it and its access.") from error


def check_own(uri: str) -> set[str]:
    """Names of the shards of a store; the folder may also be empty or missing.

    Raises
    ------
    ConfigError
        If the folder holds files and was not made by `mmh prepare`.
    DataError
        If its index cannot be read.
    """
    names = names_in(uri)
    shards = {name for name in names if is_shard(name)}
    has_index = INDEX in names
    foreign = {name for name in names - shards - {INDEX} if not name.startswith(_PARTIAL)}
    if foreign and not has_index:
        received = f"{loggable_uri(uri)}: holds {min(foreign)} and no {INDEX}"
        raise ConfigError(received, "a new folder or one made by `mmh prepare`", "Name another folder.")
    if has_index:
        _read_index(uri)
    return shards


def is_shard(name: str) -> bool:
    """Whether this is the file name of a shard."""
    return _SHARD.fullmatch(name) is not None


def keep_only(uri: str, names: Collection[str | None]) -> None:
    """Delete all other shards of a store and half-written files; call it only while no other run is writing there."""
    store, folder = open_folder(uri)
    for name in names_in(uri):
        if name.startswith(_PARTIAL):
            _delete(store, f"{folder}/{name}")
        elif is_shard(name) and name not in names:
            store.delete_file(f"{folder}/{name}")


def _delete(store: pa.fs.FileSystem, path: str) -> None:
    """Delete a file, or a folder with its content; of a link, only the link."""
    if store.get_file_info(path).type == pa.fs.FileType.Directory:
        store.delete_dir(path)
    else:
        store.delete_file(path)


class PreparedStore:
    """Reads prepared volumes by their index; can be sent to other processes, which open the shards themselves.

    >>> store = PreparedStore("s3://bucket/prepared")  # doctest: +SKIP
    >>> image, mask = store.read(store.index[0])  # doctest: +SKIP

    Raises
    ------
    DataError
        If there is no store of this version at ``uri``.
    ConfigError
        If ``uri`` cannot be opened.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        if INDEX not in names_in(uri):
            remedy = "Run `mmh prepare MANIFEST OUT` to its end."
            raise DataError(f"{loggable_uri(uri)}: no {INDEX}", "a folder made by `mmh prepare`", remedy)
        self.index: list[PreparedRow] = _entries(_read_index(uri))
        """One row of :data:`INDEX_SCHEMA` per image, ordered by `image_id`. `affine` and `registration` are arrays
        ``(4, 4)`` float64, `quantiles` and `tissues` ``(257,)`` float32. Rows of status failed have neither voxels nor
        geometry."""
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    @cached_property
    def data_hash(self) -> str:
        """Hash of all usable volumes with their site, sequence, split and provenance; independent of the shards."""
        facts = []
        for row in self.index:
            if row["status"] == Status.OK:
                facts.append([row["image_id"], row["site"], row["sequence"], row["split"], row["provenance"]])
        return hash_of(facts)

    def read(self, entry: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of one row of the index; the rest of its shard is not read.

        Returns
        -------
        tuple
            ``(X, Y, Z)`` float32 unit intensity, zero outside the brain, and ``(X, Y, Z)`` bool, the brain.

        Raises
        ------
        DataError
            If the row has no voxels, or its shard is missing or damaged.
        """
        if entry["status"] != "ok":
            received = f"{entry['image_id']}: {entry['status']} ({entry['reason']})"
            raise DataError(received, "a prepared volume", "Leave out rows whose status is not ok.")
        try:
            shard = self._shard(entry["shard"])
            columns = shard.read_row_group(entry["row_group"], columns=["image", "mask"])
            image_bytes = columns["image"][0].as_buffer()
            mask_bytes = columns["mask"][0].as_buffer()
            image = np.frombuffer(image_bytes, "<f2").reshape(entry["shape"])
            bits = np.frombuffer(mask_bytes, np.uint8)
        except (OSError, ValueError, pa.ArrowException) as error:
            received = f"{loggable_uri(self.uri)}/{entry['shard']}: {error}"
            raise DataError(received, "a readable shard", "Remove the shard and run `mmh prepare` again.") from error
        inside = np.unpackbits(bits, count=image.size)
        mask = inside.astype(bool).reshape(image.shape)
        return image.astype(np.float32), mask

    def _shard(self, name: str) -> pq.ParquetFile:
        if name not in self._open:
            store, folder = open_folder(self.uri)
            self._open[name] = pq.ParquetFile(f"{folder}/{name}", filesystem=store)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(name)
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


def _encoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A volume's row as stored in a shard."""
    image = np.ascontiguousarray(row["image"], "<f2")
    encoded = {name: _flat(row.get(name)) for name in SHARD_SCHEMA.names}
    encoded["image"] = image.tobytes()
    encoded["mask"] = np.packbits(row["mask"]).tobytes()
    encoded["shape"] = list(image.shape)
    return encoded


def _flat(value: Any) -> Any:
    return value.ravel() if isinstance(value, np.ndarray) else value


def _entries(table: pa.Table) -> list[PreparedRow]:
    """Rows with NumPy arrays: as Python lists, 257 floats a row would take most of a large index's memory."""
    matrices = ("affine", "registration")
    arrays = (*matrices, "quantiles", "tissues")
    rows = table.drop_columns(list(arrays)).to_pylist()
    for name in arrays:
        for row, value in zip(rows, table[name], strict=True):
            array = value.values.to_numpy() if value.is_valid else None
            if array is not None and name in matrices:
                array = array.reshape(4, 4)
            row[name] = array
    return cast(list[PreparedRow], rows)


def _read_index(uri: str) -> pa.Table:
    store, folder = open_folder(uri)
    remedy = "Prepare into a new folder."
    return read_table(f"{folder}/{INDEX}", INDEX_SCHEMA, "index", remedy, store, f"{loggable_uri(uri)}/{INDEX}")


def _created_folder(uri: str) -> tuple[pa.fs.FileSystem, str]:
    store, folder = open_folder_to_write(uri)
    store.create_dir(folder)
    return store, folder


def _is_local(store: pa.fs.FileSystem) -> bool:
    return isinstance(store, pa.fs.LocalFileSystem)


def _publish(store: pa.fs.FileSystem, partial: Path, target: str) -> None:
    """Rename locally; upload to an object store, where a file appears only when it is complete."""
    if _is_local(store):
        os.replace(partial, target)
        return
    with open(partial, "rb") as source, store.open_output_stream(target) as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
