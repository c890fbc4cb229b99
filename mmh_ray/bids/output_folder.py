"""The folder of derivatives as a driver has it: the folder itself, or the small files of one in an object store."""

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
"""Folder of the rows that are not in the ledger yet: JSON lines in numbered objects, the later ones newer."""
ROWS_A_PART = 100
"""Rows of a part at most: it is written again with every row."""
REPORT = "report.html"


class OutputFolder:
    """A folder on a disk.

    Attributes
    ----------
    folder:
        Where this process finds the small files.
    place:
        Where workers put derivatives, a path or URI.
    stored:
        The derivatives in the object store; None on a disk.
    """

    def __init__(self, folder: str | Path, place: str) -> None:
        self.folder = Path(folder)
        self.place = place
        self.stored: StoredDerivatives | None = None

    def journal(self) -> Journal:
        """The ledger to write to, this run's alone: see :class:`~mmh_ray.bids.ledger.Journal`."""
        return Journal(self.folder)

    def is_locked(self) -> bool:
        """Whether a run is writing there now."""
        return is_locked(self.folder)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.isfile(self.folder / name)

    def publish(self, *names: str) -> None:
        """Make files that were written to the folder seen by everybody."""

    def fetch_shown(self, rows: Iterable[LedgerRow]) -> None:
        """Get what a report shows of some images: sidecars and pictures."""


class StoredOutputFolder(OutputFolder):
    """A folder in an object store, with a local copy of its ledger, record and description."""

    def __init__(self, folder: Path, store: Store) -> None:
        super().__init__(folder, store.uri)
        self._store = store
        self.stored = StoredDerivatives(store, folder)

    def fetch(self) -> None:
        """Get the small files anew."""
        self._store.get_all([DESCRIPTION, LEDGER, RECORD, BIDSIGNORE, *READMES], self.folder)
        parts = [file.name for file in self._store.files(LEDGER_PARTS)]
        self._store.get_all(parts, self.folder)
        with open(self.folder / JOURNAL, "wb") as journal:
            for name in parts:
                path = self.folder / name
                if path.exists():  # not folded into the ledger in between
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
            if path.is_file():  # one that could not be written was warned of
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
        """Write to the local journal, and this run's latest part anew with the line at its end."""
        self._lock.check()
        super().write(line)
        if len(self._lines) % ROWS_A_PART == 0:
            self._lines.clear()
            self._number += 1
        self._lines.append(line)
        self._store.write(b"".join(self._lines), f"{LEDGER_PARTS}/{self._number:012d}.jsonl")

    def close(self) -> None:
        """Fold everything into ledger.parquet, remove the parts and let others write there."""
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
    """Number of the newest part; 0 where there is none."""
    stems = [Path(part.name).stem for part in parts]
    return max((int(stem) for stem in stems if re.fullmatch(r"\d{12}", stem)), default=0)


class StoredDerivatives:
    """Derivatives in an object store, each passing through a local folder.

    Parameters
    ----------
    folder:
        Stands for the folder in the store: a derivative's files have the same relative paths in both.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder

    @contextlib.contextmanager
    def seen(self, image: Path) -> Iterator[None]:
        """Have the sidecar of an image in the local folder while the block runs, and an empty file in the place of the image itself.

        Whatever is missing in the store is missing in the folder.
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
        """Remove a derivative, the sidecar first, and upload what the block writes to the local folder, the sidecar last.

        So an image that has a sidecar is whole, whenever a run is killed. Nothing stays in the local folder.
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
        """Remove a derivative with what belongs to it, the sidecar first."""
        for path in derivative_files(image):
            self._store.remove(self._name(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


@contextlib.contextmanager
def output_folder(out: str) -> Iterator[OutputFolder]:
    """Open a folder of derivatives: a path, or a URI in an object store. Errors of the block name the place that was given.

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
