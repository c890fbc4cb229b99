"""Mirrors an archive in an object store as a local folder with its names, tables and sidecars, but no voxels."""

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
"""Endings of sidecars and tables, and of files that may be meant as tables."""
_NOT_SEARCHED = ("sourcedata", "code", "stimuli", "phenotype")
"""Folders beside the subjects that are not searched."""


@contextlib.contextmanager
def outline(uri: str) -> Iterator[Path]:
    """A temporary folder with all that is needed to find the images of an archive; errors in the block name the URI.

    Every object has a file with its name and size. Tables and sidecars have their content; all other files are sparse
    and take no disk space.

    Raises
    ------
    ConfigError
        If there is no such bucket or folder.
    DataError
        If the folder cannot be listed, or a table cannot be read.
    """
    store = Store(uri)
    store.check_bucket()
    files = store.files()
    if not files:
        remedy = "Name the folder that holds the sub-* folders."
        raise ConfigError(f"{store.uri}: no such folder, or an empty one", "a BIDS archive", remedy)
    with tempfile.TemporaryDirectory(prefix="mmh-archive-") as scratch:
        folder = Path(scratch).resolve()
        log.info("%s: copying its names and tables to %s", store.uri, folder)
        placed = _place_all(files, folder)
        store.get_all([file.name for file in placed if _is_read(file)], folder)
        with naming({str(folder): store.uri}):
            yield folder


def at_store(rows: Iterable[ManifestRow], folder: Path, uri: str) -> list[ManifestRow]:
    """Rows of an outline, with local paths replaced by URIs, also in the reasons."""
    uri_of = {str(folder): uri.rstrip("/")}
    moved_rows = []
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
        moved_rows.append(moved)
    return moved_rows


@contextlib.contextmanager
def outlined(rows: Iterable[dict[str, Any]], *folders: str | None) -> Iterator[list[str | None]]:
    """Replace URIs in object stores by paths in outlines (:func:`outline`) while the block runs; modifies the rows.

    Parameters
    ----------
    rows:
        Rows with `uri`. Afterwards `uri`, `lesion_uri` and `labels_uri` are URIs again.
    folders:
        Other folders that the block needs; it gets their local paths.
    """
    uri_of: dict[str, str] = {}
    folder_of: dict[str, str] = {}
    with contextlib.ExitStack() as stack:

        def local_folder(uri: str) -> str:
            """Outline of a remote folder; a local folder itself."""
            if is_remote(uri) and uri not in folder_of:
                folder_of[uri] = str(stack.enter_context(outline(uri)))
                uri_of[folder_of[uri]] = uri.rstrip("/")
            return folder_of.get(uri, uri)

        rows = list(rows)
        for row in rows:
            if is_remote(row["uri"]):
                subject = f"/{parse(row['uri']).folders[0]}/"
                root, _, _ = row["uri"].rpartition(subject)
                row["uri"] = f"{local_folder(root)}/{row['uri'].removeprefix(f'{root}/')}"
        yield [folder and local_folder(folder) for folder in folders]
        for row in rows:
            for column in ("uri", "lesion_uri", "labels_uri"):
                if row.get(column):
                    row[column] = renamed(row[column], uri_of)


def _place_all(files: Iterable[StoredFile], folder: Path) -> list[StoredFile]:
    """Create a sparse file of each object's size; returns the objects for which that was possible."""
    placed = []
    odd = []
    for file in files:
        parts = PurePosixPath(file.name).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if is_hidden or parts[0] in _NOT_SEARCHED:
            continue
        path = folder / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as stream:
                os.truncate(stream.fileno(), file.size)
        except (OSError, ValueError):  # a file where a folder is needed, a name that is too long
            odd.append(file.name)
        else:
            placed.append(file)
    warn_of(odd, "an object left out, because its key cannot be a file name")
    return placed


def _is_read(file: StoredFile) -> bool:
    """Whether an object may be a table or sidecar about images: by ending, folder and size."""
    *folders, name = PurePosixPath(file.name).parts
    is_of_images = not folders or folders[-1] == "anat" or folders[-1].startswith(("sub-", "ses-"))
    return is_of_images and name.lower().endswith(_READ) and file.size <= SMALL_BYTES
