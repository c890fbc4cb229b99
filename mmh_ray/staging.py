"""Copies objects of a store to local files while they are read; local files are used in place."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmh_ray.errors import MMHError
from mmh_ray.files import open_regular
from mmh_ray.object_store import Store, StoredFile, is_remote

SETTLED_S = 3600.0
"""Seconds after its last change from which a file's state is trusted; clocks differ by far less."""


@contextlib.contextmanager
def staged(*uris: str) -> Iterator[list[str]]:
    """Local paths of files, in the same order; objects are copied to a temporary folder of this node.

    Errors raised in the block name the objects, not their copies.

    Raises
    ------
    DataError
        If an object is missing or cannot be read.
    ConfigError
        If the store cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        paths: list[str] = []
        uri_of: dict[str, str] = {}
        for uri in uris:
            if not is_remote(uri):
                paths.append(uri)
                continue
            folder, _, name = uri.rpartition("/")
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmh-staged-"))
            path = Path(scratch, name)
            Store(folder).get(name, path)
            paths.append(str(path))
            uri_of[str(path)] = uri
        stack.enter_context(naming(uri_of))
        yield paths


@contextlib.contextmanager
def staged_scan(uri: str, mask_uri: str | None) -> Iterator[tuple[str, str | None]]:
    """:func:`staged` for a scan and its brain mask, if it has one."""
    if not mask_uri:
        with staged(uri) as (path,):
            yield path, None
        return
    with staged(uri, mask_uri) as (path, mask_path):
        yield path, mask_path


@contextlib.contextmanager
def uploaded(folder: str) -> Iterator[str]:
    """A local folder whose files are uploaded after the block succeeds; ``folder`` itself if that is local.

    Raises
    ------
    DataError
        If an object cannot be written.
    ConfigError
        If the store or the bucket does not exist.
    """
    if not is_remote(folder):
        yield folder
        return
    store = Store(folder)
    store.check_bucket()
    with tempfile.TemporaryDirectory(prefix="mmh-upload-") as scratch:
        with naming({scratch: store.uri}):
            yield scratch
        for path in sorted(Path(scratch).rglob("*")):
            if path.is_file():
                store.put(path, path.relative_to(scratch).as_posix())


def size_of(place: str) -> int | None:
    """Size of a file or an object in bytes; None if it does not exist."""
    if is_remote(place):
        file = _stored_file(place)
        return None if file is None else file.size
    path = Path(place)
    return path.stat().st_size if path.exists() else None


def state_of(place: str) -> tuple[int, ...] | None:
    """Numbers that change whenever a file or object is written; None if that cannot be guaranteed.

    For a file: size, inode, and the times of the last change to its content (mtime) and to its metadata (ctime).
    A program cannot set the ctime back. For an object: size, and time of writing by the store's clock.

    None within :data:`SETTLED_S` of a change, because a coarse clock can give two changes the same time. None as well
    if the file or object does not exist.

    Raises
    ------
    DataError
        If the store does not answer.
    """
    state: tuple[int, ...]
    if is_remote(place):
        file = _stored_file(place)
        if file is None:
            return None
        written_s = file.written.timestamp()
        state = (file.size, round(written_s * 1e6))
    else:
        try:
            # Open the file: otherwise a network disk may not show yet what another machine changed.
            with open_regular(place) as stream:
                facts = os.fstat(stream.fileno())
        except OSError:
            return None
        written_s = max(facts.st_mtime, facts.st_ctime)
        state = (facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns)
    return state if time.time() - written_s > SETTLED_S else None


def _stored_file(uri: str) -> StoredFile | None:
    folder, _, name = uri.rpartition("/")
    return Store(folder).find(name)


@contextlib.contextmanager
def naming(uri_of: Mapping[str, str]) -> Iterator[None]:
    """Replace local paths by their URIs in errors raised in the block."""
    try:
        yield
    except MMHError as error:
        parts = [renamed(part, uri_of) for part in (error.received, error.expected, error.remedy)]
        if parts == [error.received, error.expected, error.remedy]:
            raise
        raise type(error)(*parts) from error
    except OSError as error:
        if error.filename is not None:
            error.filename = renamed(str(error.filename), uri_of)
        raise


def renamed(text: str, uri_of: Mapping[str, str]) -> str:
    """The text with local paths replaced by their URIs."""
    for path, uri in uri_of.items():
        text = text.replace(path, uri)
    return text
