"""What lies around derivative images: dataset_description.json, sidecars, and the ledger of what was done."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmh_ray.errors import ConfigError, DataError
from mmh_ray.provenance import whole_file, write_json
from mmh_ray.tables import read_table

log = logging.getLogger(__name__)

BIDS_VERSION = "1.10.0"
GENERATOR = "mmh_ray"
STATUSES = ("done", "skipped", "failed", "refused")
LEDGER_VERSION = b"1"
LEDGER_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source", pa.string()),  # path or URI of the input
        pa.field("output", pa.string()),  # relative to the derivatives' root; none unless one was written
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("input_sha256", pa.string()),
        pa.field("model_hash", pa.string()),
        pa.field("settings_hash", pa.string()),
    ],
    metadata={b"mmh_ledger_version": LEDGER_VERSION},
)
"""Columns of OUT/ledger.parquet, a row per image."""

Row = dict[str, Any]


def write_dataset_description(out: str | Path, source: str | Path, code_version: str) -> None:
    """Write OUT/dataset_description.json: a derivative dataset made by this version from that source.

    Raises
    ------
    ConfigError
        If OUT already holds a dataset that was not made by this software, such as the raw archive itself.
    """
    path = Path(out) / "dataset_description.json"
    if path.exists():
        makers = _read_json(path).get("GeneratedBy")
        if not any(isinstance(maker, dict) and maker.get("Name") == GENERATOR for maker in makers or ()):
            received = f"{out}: holds another dataset ({path.name} without GeneratedBy {GENERATOR})"
            raise ConfigError(received, "a new folder or one of an earlier run", "Name another output folder.")
    raw = {} if "://" in str(source) else _read_json(Path(source) / path.name)
    url = str(source) if "://" in str(source) else Path(source).resolve().as_uri()
    doi = {"DOI": raw["DatasetDOI"]} if isinstance(raw.get("DatasetDOI"), str) else {}
    description = {
        "Name": f"{raw.get('Name', 'MRI')}, harmonized",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": GENERATOR, "Version": code_version}],
        "SourceDatasets": [{"URL": url} | doi],
    }
    write_json(path, description)


def write_sidecar(image_path: str | Path, fields: Mapping[str, Any]) -> Path:
    """Write the `.json` beside an image, whole or not at all; NaN is refused.

    Returns
    -------
    Path
        The sidecar.
    """
    path = sidecar_path(image_path)
    write_json(path, dict(fields))
    return path


def sidecar_path(image_path: str | Path) -> Path:
    """Path of the `.json` beside an image."""
    image_path = Path(image_path)
    return image_path.with_name(f"{image_path.name.removesuffix('.gz').removesuffix('.nii')}.json")


def read_ledger(path: str | Path) -> list[Row]:
    """Rows of a ledger; none where there is no file.

    Raises
    ------
    DataError
        If the file is not a ledger of this version.
    """
    if not Path(path).exists():
        return []
    remedy = "Move it away; every image is then done again."
    return read_table(path, LEDGER_SCHEMA, "ledger", remedy).to_pylist()


def write_ledger(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a ledger ordered by `image_id`, whole or not at all, safe on disk when this returns."""
    ordered = sorted(map(_checked, rows), key=lambda row: row["image_id"])
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(ordered, schema=LEDGER_SCHEMA), partial)
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())


class Journal:
    """The ledger while a run goes on: every finished row is on disk at once, whatever happens to the driver.

    Rows are appended to OUT/.ledger.jsonl and folded into OUT/ledger.parquet by :meth:`close`. What a killed run left
    is found again by the next one.

    Raises
    ------
    ConfigError
        If another run is writing to the same folder.
    DataError
        If the ledger of an earlier run cannot be read.
    """

    def __init__(self, out: str | Path) -> None:
        self._ledger, self._path = Path(out) / "ledger.parquet", Path(out) / ".ledger.jsonl"
        self._rows = {row["image_id"]: row for row in read_ledger(self._ledger)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(self._path, "ab")  # noqa: SIM115 - closed by close()
        try:
            self._lock(out)
            self._recover()
        except BaseException:
            self._stream.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Record a finished image; on disk when this returns. A later row of an image replaces the earlier one."""
        checked = _checked(row)
        line = json.dumps(checked, allow_nan=False) + "\n"
        self._stream.write(line.encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._rows[checked["image_id"]] = checked

    def rows(self) -> dict[str, Row]:
        """The latest row of every image by `image_id`, of this run and of earlier ones."""
        return dict(self._rows)

    def close(self) -> None:
        """Fold everything into ledger.parquet and remove the journal; closing twice does nothing."""
        if self._stream.closed:
            return
        try:
            write_ledger(self._ledger, self._rows.values())
            self._path.unlink(missing_ok=True)
        finally:
            self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self, out: str | Path) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            received = f"{out}: another run is writing there"
            raise ConfigError(received, "one run a folder", "Wait for it or stop it.") from error
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s); start no second run there", self._path, error)

    def _recover(self) -> None:
        """Take over what a killed run left; a half-written last line ends there."""
        left = self._path.read_bytes()
        for line in filter(None, left.split(b"\n")):
            try:
                row = _checked(json.loads(line))
            except (ValueError, DataError):
                log.warning("%s: a half-written line is left out", self._path)
                continue
            self._rows[row["image_id"]] = row
        if left and not left.endswith(b"\n"):
            self._stream.write(b"\n")


def _checked(row: Any) -> Row:
    """The row with every column, absent ones None."""
    unknown = set(row) - set(LEDGER_SCHEMA.names) if isinstance(row, Mapping) else {repr(row)}
    if unknown or not row.get("image_id") or row.get("status") not in STATUSES:
        expected = f"image_id, a status of {STATUSES}, columns {LEDGER_SCHEMA.names}"
        raise DataError(f"ledger row {row!r}", expected, "Correct the row.")
    return dict.fromkeys(LEDGER_SCHEMA.names) | dict(row)


def _read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON object; empty where the file is absent or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else {}
    return {}
