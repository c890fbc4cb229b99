"""Columns of the manifest, and an empty row of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from mmh_ray.bids.text import printable

VERSION = b"1"
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("image_id", "uri")),
        *(pa.field(name, pa.string()) for name in ("subject", "session", "site", "sequence", "split", "mask_uri")),
        pa.field("age", pa.float64()),
        *(pa.field(name, pa.string()) for name in ("sex", "manufacturer")),
        pa.field("field_strength_t", pa.float64()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("spacing_mm", pa.list_(pa.float64())),
        pa.field("orientation", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ],
    metadata={b"mmh_manifest_version": VERSION},
)
"""Columns of the manifest; the version stands in the file's metadata.

`image_id` is unique: the BIDS stem, or the relative path of a file that cannot have one. `split` is train, val, test or
none (a subject without a usable image); `sex` M, F or O; `orientation` the ends of the voxel axes, such as RAS;
`status` ok or unusable, with the `reason`.
"""

Row = dict[str, Any]


def new_row(path: str | Path, relative: str) -> Row:
    """The row of a file of which nothing else is known yet."""
    row: Row = dict.fromkeys(SCHEMA.names)
    return row | {"image_id": relative, "uri": printable(path), "status": "ok"}


def unusable(row: Row, error: Exception) -> Row:
    """The row with the reason why the file cannot be used."""
    return row | {"status": "unusable", "reason": printable(str(error))}
