"""Writes and reads the ledger of a folder of derivatives: the result of every image, saved as soon as it is known."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mmh_ray.bids.ledger_rows import encodable, usable_rows
from mmh_ray.bids.rows import LEDGER_STATUSES, LedgerRow
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.files import open_regular
from mmh_ray.provenance import whole_file
from mmh_ray.tables import read_table

log = logging.getLogger(__name__)

LEDGER = "ledger.parquet"
JOURNAL = ".ledger.jsonl"
LOCKING_S = 2.0
"""Seconds for which a run tries to lock its folder, because :func:`is_locked` may hold the lock for a moment."""
LONGEST_LINE = 2**20
"""Most bytes of a line of the journal; a longer line is damaged."""
_VERSION_KEY = b"mmh_ledger_version"
LEDGER_VERSION = b"5"
LEDGER_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # of an image harmonized to a target: IMAGE@TARGET
        pa.field("target", pa.string()),  # name of the target; null for the unified domain
        pa.field("site", pa.string()),
        pa.field("sequence", pa.string()),  # BIDS suffix
        pa.field("source", pa.string()),  # path or URI of the input
        pa.field("output", pa.string()),  # relative to the root of the derivatives; of a failed image: an old output
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),  # of a failed or refused image: what was received
        pa.field("expected", pa.string()),  # what is needed instead
        pa.field("remedy", pa.string()),  # what the user can do
        pa.field("flags", pa.list_(pa.string())),  # reasons why a person should look at the image
        pa.field("seconds", pa.float64()),
        pa.field("finished", pa.string()),  # UTC, ISO 8601
        pa.field("input_sha256", pa.string()),  # of the scan; with a given brain mask, over the hashes of both
        pa.field("input_state", pa.string()),  # hash of names, sizes, times of scan and mask; null if just changed
        pa.field("model_hash", pa.string()),
        pa.field("settings_hash", pa.string()),
    ],
    metadata={_VERSION_KEY: LEDGER_VERSION},
)
"""Columns of OUT/ledger.parquet, a row per image and target."""
_SCHEMA_4 = pa.schema([field for field in LEDGER_SCHEMA if field.name != "input_state"], metadata={_VERSION_KEY: b"4"})
"""Columns of a ledger of the previous version; it has no `input_state`, so every scan is read again."""


def read_ledger(path: str | Path) -> list[LedgerRow]:
    """Rows of a ledger of this or the previous version, without damaged values; empty if there is no file.

    Raises
    ------
    DataError
        If the file is not such a ledger.
    """
    if not os.path.lexists(path):
        return []
    schema = _SCHEMA_4 if _version_of(path) == b"4" else LEDGER_SCHEMA
    remedy = "Move it away; every image is then done again."
    table = read_table(path, schema, "ledger", remedy)
    return list(usable_rows(table.to_pylist(), str(path)))


def _version_of(path: str | Path) -> bytes | None:
    """Version of the ledger in a file; None if it is no ledger, which :func:`read_table` reports."""
    try:
        with open_regular(path) as stream:
            metadata = pq.read_schema(stream).metadata
    except (OSError, ValueError, pa.ArrowException):
        return None
    return (metadata or {}).get(_VERSION_KEY)


def write_ledger(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a ledger ordered by `image_id`, whole or not at all; a power cut just after may restore the old one."""
    checked = [_checked(row) for row in rows]
    ordered = sorted(checked, key=lambda row: row["image_id"])
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(ordered, schema=LEDGER_SCHEMA), partial)


def current_rows(out: str | Path) -> list[LedgerRow]:
    """Latest row of every image, ordered by `image_id`; works during a run and after one that was killed."""
    rows = _by_image(read_ledger(Path(out) / LEDGER))
    rows |= _by_image(_rows_in(Path(out) / JOURNAL))
    return [rows[image_id] for image_id in sorted(rows)]


def _by_image(rows: Iterable[LedgerRow]) -> dict[str, LedgerRow]:
    """Rows by `image_id`; the last row of an image counts."""
    return {row["image_id"]: row for row in rows}


def is_locked(out: str | Path) -> bool:
    """Whether a run is writing to the folder now; always False on file systems without locks."""
    try:
        with open_regular(Path(out) / JOURNAL) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no journal, or no locks
        return False
    return False


def _rows_in(journal: Path) -> Iterator[LedgerRow]:
    """Complete rows of a journal; none if it is missing or unreadable."""
    try:
        with open_regular(journal) as stream:
            yield from usable_rows(map(_parsed, _lines_of(stream)), str(journal))
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s: not read (%s)", journal, error)


def _lines_of(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not empty; a line that is too long comes in pieces, which are not valid rows."""
    while line := stream.readline(LONGEST_LINE):
        if line.strip():
            yield line


def _parsed(line: bytes) -> Any:
    """Value of a line of JSON; None if it is not JSON or nested too deeply."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


class Journal:
    """The ledger during a run: every finished row is saved at once, so that no row is lost if the driver is killed.

    Rows are appended to OUT/.ledger.jsonl and merged into OUT/ledger.parquet by :meth:`close`. The next run takes over
    the journal of a run that was killed.

    Raises
    ------
    ConfigError
        If another run is writing to the same folder.
    DataError
        If the ledger of an earlier run cannot be read.
    """

    def __init__(self, out: str | Path) -> None:
        self.ledger = Path(out) / LEDGER
        self._path = Path(out) / JOURNAL
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._locked(out)
        try:
            self._rows = _by_image(read_ledger(self.ledger))
            self._recover()
        except BaseException:
            self._stream.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Record a finished image; it is on disk when this returns. It replaces an earlier row of the image."""
        checked = _checked(row)
        line = json.dumps(checked, allow_nan=False) + "\n"
        self.write(line.encode())
        self._rows[checked["image_id"]] = checked

    def write(self, line: bytes) -> None:
        """Write a line; it is on disk when this returns."""
        try:
            self._stream.write(line)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise _full(self._path, error) from error

    def rows(self) -> dict[str, LedgerRow]:
        """The latest row of every image by `image_id`, from this run or an earlier one."""
        return dict(self._rows)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._stream.closed

    def close(self) -> None:
        """Merge everything into ledger.parquet and remove the journal; a second call does nothing."""
        if self.is_closed:
            return
        try:
            write_ledger(self.ledger, self._rows.values())
            self._path.unlink(missing_ok=True)
        except OSError as error:  # the journal stays, and the next run takes it over
            raise _full(self.ledger, error) from error
        finally:
            with contextlib.suppress(OSError):  # append has already raised what could not be written
                self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _locked(self, out: str | Path) -> IO[bytes]:
        """Open and lock the journal, again if another run removes it between the two."""
        deadline = time.monotonic() + LOCKING_S
        while True:
            stream = _open_journal(self._path)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.close()
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                received = f"{out}: another run is writing there"
                raise ConfigError(received, "one run a folder", "Wait for it or stop it.") from error
            except OSError as error:  # some network file systems have no locks
                log.warning("%s cannot be locked (%s); start no second run there", self._path, error)
                return stream
            opened = os.fstat(stream.fileno())
            if self._path.exists() and os.path.samestat(opened, self._path.stat()):
                return stream
            stream.close()

    def _recover(self) -> None:
        """Take over the rows of a run that was killed, and end a half-written last line."""
        self._rows |= _by_image(_rows_in(self._path))
        with open_regular(self._path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 1))
            ends_within_line = size > 0 and stream.read() != b"\n"
        if ends_within_line:
            self._stream.write(b"\n")


def _open_journal(path: Path) -> IO[bytes]:
    """Open a journal to append to it; links are refused, because they lead to files of other folders.

    Raises
    ------
    ConfigError
        If its name is that of a link, a named pipe, a device or a folder.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _no_journal(path) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise _no_journal(path)
    return os.fdopen(descriptor, "ab")


def _no_journal(path: Path) -> ConfigError:
    return ConfigError(f"{path}: a link or no regular file", "a journal of this folder's own, or none", "Remove it.")


def _full(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: {error}", "a disk that takes the ledger", "Free space or restore it, then run again.")


def _checked(row: Mapping[str, Any]) -> LedgerRow:
    """A row to be written, with all columns; missing ones are None."""
    if not _is_complete(row):
        statuses = ", ".join(LEDGER_STATUSES)
        expected = f"image_id, a status of {statuses}, columns {LEDGER_SCHEMA.names}"
        raise DataError(f"ledger row {row!r}", expected, "Correct the row.")
    checked: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names)
    for name, value in row.items():
        checked[name] = encodable(value)
    return cast(LedgerRow, checked)


def _is_complete(row: Any) -> bool:
    """Whether a row has an image and a status, and no unknown column."""
    if not isinstance(row, Mapping) or set(row) - set(LEDGER_SCHEMA.names):
        return False
    return bool(row.get("image_id")) and row.get("status") in LEDGER_STATUSES
