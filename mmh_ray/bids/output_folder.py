"""Opens a folder of derivatives for the driver: on disk, or in an object store with local copies of small files."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmh_ray.bids.derivatives import BIDSIGNORE, DESCRIPTION, READMES, derivative_files, sidecar_path
from mmh_ray.bids.ledger import JOURNAL, LEDGER, Journal, is_locked
from mmh_ray.bids.rows import MADE, LedgerRow
from mmh_ray.bids.status import RECORD
from mmh_ray.bids.store_lock import StoreLock, is_store_locked
from mmh_ray.object_store import Store, StoredFile, is_remote
from mmh_ray.staging import naming

LEDGER_PARTS = ".ledger"
"""Folder of the rows that are not in the ledger yet: JSON lines in numbered objects; higher numbers are newer."""
ROWS_A_PART = 100
"""Most rows of a part; a part is uploaded again for every new row."""
REPORT = "report.html"


class OutputFolder:
    """A folder on a disk.

    Attributes
    ----------
    folder:
        Local folder with the small files.
    place:
        Path or URI to which workers write derivatives.
    stored:
        The derivatives in the object store; None on a disk.
    """

    def __init__(self, folder: str | Path, place: str) -> None:
        self.folder = Path(folder)
        self.place = place
        self.stored: StoredDerivatives | None = None

    def journal(self) -> Journal:
        """Open the ledger for this run only: see :class:`~mmh_ray.bids.ledger.Journal`."""
        return Journal(self.folder)

    def is_locked(self) -> bool:
        """Whether a run is writing there now."""
        return is_locked(self.folder)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.isfile(self.folder / name)

    def publish(self, *names: str) -> None:
        """Upload files that were written to the local folder."""

    def fetch_shown(self, rows: Iterable[LedgerRow]) -> None:
        """Fetch what a report shows of these images: sidecars and pictures."""


class StoredOutputFolder(OutputFolder):
    """A folder in an object store, with a local copy of its ledger, record and description."""

    def __init__(self, folder: Path, store: Store) -> None:
        super().__init__(folder, store.uri)
        self._store = store
        self.stored = StoredDerivatives(store, folder)

    def fetch(self) -> None:
        """Fetch the small files."""
        self._store.get_all([DESCRIPTION, LEDGER, RECORD, BIDSIGNORE, *READMES], self.folder)
        parts = [file.name for file in self._store.files(LEDGER_PARTS)]
        self._store.get_all(parts, self.folder)
        with open(self.folder / JOURNAL, "wb") as journal:
            for name in parts:
                path = self.folder / name
                if path.exists():  # else it was merged into the ledger after the listing
                    journal.write(path.read_bytes())

    def journal(self) -> Journal:
        return StoredJournal(self)

    def is_locked(self) -> bool:
        return is_store_locked(self._store)

    def has(self, name: str) -> bool:
        return self._store.has(name)

    def publish(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            if path.is_file():  # else it could not be written, which was logged
                self._store.put(path, name)

    def fetch_shown(self, rows: Iterable[LedgerRow]) -> None:
        names = []
        for row in rows:
            if row["status"] in MADE and row["output"]:
                image = Path(row["output"])
                names += [path.as_posix() for path in derivative_files(image) if path != image]
        self._store.get_all(names, self.folder)


class StoredJournal(Journal):
    """A journal whose rows are in the object store when :meth:`append` returns."""

    def __init__(self, output: StoredOutputFolder) -> None:
        self._store = Store(output.place)
        self._lock = StoreLock(self._store)
        try:
            output.fetch()
            self._number = _last_number(self._store.files(LEDGER_PARTS))
            super().__init__(output.folder)
        except BaseException:
            self._lock.release()
            raise
        self._lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        """Write a line to the local journal, and upload this run's latest part with that line."""
        self._lock.check()
        super().write(line)
        if len(self._lines) % ROWS_A_PART == 0:
            self._lines.clear()
            self._number += 1
        self._lines.append(line)
        self._store.write(b"".join(self._lines), f"{LEDGER_PARTS}/{self._number:012d}.jsonl")

    def close(self) -> None:
        """Merge everything into ledger.parquet, remove the parts and release the lock."""
        if self.is_closed:
            return
        try:
            super().close()
            self._lock.check()
            self._store.put(self.ledger, LEDGER)
            for file in self._store.files(LEDGER_PARTS):
                self._store.remove(file.name)
        finally:
            self._lock.release()


def _last_number(parts: Iterable[StoredFile]) -> int:
    """Number of the newest part; 0 if there is none."""
    stems = [Path(part.name).stem for part in parts]
    return max((int(stem) for stem in stems if re.fullmatch(r"\d{12}", stem)), default=0)


class StoredDerivatives:
    """Reads and writes derivatives in an object store through a local folder.

    Parameters
    ----------
    folder:
        Local folder; files have the same relative paths here and in the store.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder

    @contextlib.contextmanager
    def seen(self, image: Path) -> Iterator[None]:
        """Keep an image's sidecar in the local folder during the block, and an empty file in place of the image.

        A file that is missing in the store is missing locally, too.
        """
        sidecar = sidecar_path(image)
        try:
            self._store.get_all([self._name(sidecar)], self._folder)
            if self._store.has(self._name(image)):
                image.parent.mkdir(parents=True, exist_ok=True)
                image.touch()
            yield
        finally:
            image.unlink(missing_ok=True)
            sidecar.unlink(missing_ok=True)

    @contextlib.contextmanager
    def replacing(self, image: Path) -> Iterator[None]:
        """Remove a derivative, then upload what the block writes to the local folder.

        The sidecar is removed first and uploaded last. So an image with a sidecar is complete, even if a run is killed.
        The local files are deleted afterwards.
        """
        self.remove(image)
        sidecar, *others = derivative_files(image)
        try:
            yield
            for path in (*others, sidecar):
                self._store.put(path, self._name(path))
        finally:
            for path in (*others, sidecar):
                path.unlink(missing_ok=True)

    def remove(self, image: Path) -> None:
        """Remove all files of a derivative, the sidecar first."""
        for path in derivative_files(image):
            self._store.remove(self._name(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


@contextlib.contextmanager
def output_folder(out: str) -> Iterator[OutputFolder]:
    """Open a folder of derivatives, a path or a URI in an object store; errors in the block name this path or URI.

    Raises
    ------
    ConfigError
        If there is no such store or bucket.
    DataError
        If it cannot be read.
    """
    if not is_remote(out):
        yield OutputFolder(out, os.path.abspath(out))
        return
    store = Store(out)
    store.check_bucket()
    with tempfile.TemporaryDirectory(prefix="mmh-out-") as scratch:
        folder = Path(scratch).resolve()
        output = StoredOutputFolder(folder, store)
        with naming({str(folder): store.uri}):
            output.fetch()
            yield output
