"""Reads Parquet tables, and refuses those of another version."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmh_ray.errors import DataError
from mmh_ray.files import open_regular


def read_table(
    path: str | Path,
    schema: pa.Schema,
    name: str,
    remedy: str,
    filesystem: pa.fs.FileSystem | None = None,
    shown: str = "",
) -> pa.Table:
    """Read a Parquet file of exactly this schema.

    Parameters
    ----------
    schema:
        Its metadata has one entry, the version.
    name, remedy:
        Name of the table, and what to do if it cannot be read; for errors.
    shown:
        Name of the file in errors; empty for its path.

    Raises
    ------
    DataError
        If it cannot be read, or has other columns or another version.
    """
    shown = shown or str(path)
    try:
        with contextlib.ExitStack() as stack:
            source = path if filesystem is not None else stack.enter_context(open_regular(path))
            table = stack.enter_context(pq.ParquetFile(source, filesystem=filesystem)).read()
            table.validate(full=True)  # text that is not UTF-8 would otherwise fail at its first use
            columns = table.column_names
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{shown}: {error}", f"a readable {name} in Parquet", remedy) from error
    ((key, version),) = schema.metadata.items()
    recorded_version = (table.schema.metadata or {}).get(key, b"none")
    if recorded_version != version or not table.schema.equals(schema):
        received = f"{shown}: version {recorded_version.decode(errors='replace')}, columns {columns}"
        raise DataError(received, f"{name} of version {version.decode()}, columns {schema.names}", remedy)
    return table
