"""Defines the columns of the manifest, and makes empty and unusable rows."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pyarrow as pa

from mmh_ray.bids.rows import ManifestRow, Problem, Status
from mmh_ray.bids.text import printable
from mmh_ray.errors import MMHError

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
"""Columns of the manifest; the version is in the file's metadata.

- `image_id`: unique. The BIDS stem, or the relative path of a file that cannot have one.
- `split`: train, val or test; null for a subject without a usable image.
- `sex`: M, F or O. `orientation`: the directions of the voxel axes, such as RAS.
- `status`: ok or unusable, with the `reason`.
"""


def new_row(path: str | Path, relative: str) -> ManifestRow:
    """The row of a file about which nothing else is known yet."""
    row = cast(ManifestRow, dict.fromkeys(SCHEMA.names))
    row["image_id"] = relative
    row["uri"] = printable(path)
    row["status"] = Status.OK
    return row


def mark_unusable(row: ManifestRow, error: MMHError) -> ManifestRow:
    """Set the reason why the file cannot be used; returns the row itself."""
    parts = (error.received, error.expected, error.remedy)
    row["status"] = Status.UNUSABLE
    row["reason"] = printable(str(error))
    row["problem"] = Problem(*map(printable, parts))
    return row
