"""An archive in an object store, as a local folder that has its names, tables and sidecars, and no voxel."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mmh_ray.bids.entities import parse
from mmh_ray.bids.rows import ManifestRow
from mmh_ray.bids.text import warn_of
from mmh_ray.errors import ConfigError
from mmh_ray.files import SMALL_BYTES
from mmh_ray.object_store import Store, StoredFile, is_remote
from mmh_ray.staging import naming, renamed

log = logging.getLogger(__name__)

_READ = (".json", ".tsv", ".csv", ".txt", ".tsv.gz", ".csv.gz", ".xlsx", ".xls", ".ods")
"""Endings of the files that may say something of images, or are taken for such a table."""
_NOT_LOOKED_AT = ("sourcedata", "code", "stimuli", "phenotype")
"""Folders beside the subjects that nobody looks into."""


@contextlib.contextmanager
def outline(uri: str) -> Iterator[Path]:
    """A temporary folder with everything that finding the images of an archive reads; the block's errors name the URI.

    Every object has a file of its name and size there. Those with tables and sidecars have their content, all others
    are holes, which take no space.

    Raises
    ------
    ConfigError
        If there is no such bucket or folder.
    DataError
        If the folder cannot be listed, or a table not be read.
    """
    store = Store(uri)
    store.check_bucket()
    files = store.files()
    if not files:
        remedy = "Name the folder that holds the sub-* folders."
        raise ConfigError(f"{store.uri}: no such folder, or an empty one", "a BIDS archive", remedy)
    with tempfile.TemporaryDirectory(prefix="mmh-archive-") as scratch:
        folder = Path(scratch).resolve()
        log.info("%s: its names and tables are read in %s", store.uri, folder)
        placed = _place_all(files, folder)
        store.get_all([file.name for file in placed if _is_read(file)], folder)
        with naming({str(folder): store.uri}):
            yield folder


def at_store(rows: Iterable[ManifestRow], folder: Path, uri: str) -> list[ManifestRow]:
    """Rows of an outline's images as those of the archive: URIs in place of paths, in the reasons, too."""
    uri_of = {str(folder): uri.rstrip("/")}
    found = []
    for row in rows:
        moved = row.copy()
        moved["uri"] = renamed(row["uri"], uri_of)
        if row["mask_uri"] is not None:
            moved["mask_uri"] = renamed(row["mask_uri"], uri_of)
        if row["reason"] is not None:
            moved["reason"] = renamed(row["reason"], uri_of)
        problem = row.get("problem")
        if problem is not None:
            parts = [part and renamed(part, uri_of) for part in problem]
            moved["problem"] = type(problem)(*parts)  # type: ignore[arg-type]  # None where it was None
        found.append(moved)
    return found


@contextlib.contextmanager
def outlined(rows: Iterable[dict[str, Any]], *folders: str | None) -> Iterator[list[str | None]]:
    """While the block runs, rows of archives in object stores name files of outlines (:func:`outline`), in place; then URIs again.

    Parameters
    ----------
    rows:
        With `uri`, and once the block has set them, `lesion_uri` and `labels_uri`.
    folders:
        Others that the block looks into; it gets their paths.
    """
    uri_of: dict[str, str] = {}
    folder_of: dict[str, str] = {}
    with contextlib.ExitStack() as stack:

        def here(uri: str) -> str:
            """Outline of a folder; a local one is itself."""
            if is_remote(uri) and uri not in folder_of:
                folder_of[uri] = str(stack.enter_context(outline(uri)))
                uri_of[folder_of[uri]] = uri.rstrip("/")
            return folder_of.get(uri, uri)

        rows = list(rows)
        for row in rows:
            if is_remote(row["uri"]):
                subject = f"/{parse(row['uri']).folders[0]}/"
                root, _, _ = row["uri"].rpartition(subject)
                row["uri"] = f"{here(root)}/{row['uri'].removeprefix(f'{root}/')}"
        yield [folder and here(folder) for folder in folders]
        for row in rows:
            for column in ("uri", "lesion_uri", "labels_uri"):
                if row.get(column):
                    row[column] = renamed(row[column], uri_of)


def _place_all(files: Iterable[StoredFile], folder: Path) -> list[StoredFile]:
    """Make an empty file of each object's size; those that have got one."""
    placed = []
    odd = []
    for file in files:
        parts = PurePosixPath(file.name).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if is_hidden or parts[0] in _NOT_LOOKED_AT:
            continue
        path = folder / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as stream:
                os.truncate(stream.fileno(), file.size)
        except (OSError, ValueError):  # a file in the place of a folder, a name that is too long
            odd.append(file.name)
        else:
            placed.append(file)
    warn_of(odd, "an object left out, whose key cannot be a file's name")
    return placed


def _is_read(file: StoredFile) -> bool:
    """Whether an object may hold what is said of images: one of this ending where BIDS has such, and no larger than is read."""
    *folders, name = PurePosixPath(file.name).parts
    is_of_images = not folders or folders[-1] == "anat" or folders[-1].startswith(("sub-", "ses-"))
    return is_of_images and name.lower().endswith(_READ) and file.size <= SMALL_BYTES
