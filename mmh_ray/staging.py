"""Objects of a store as local files for as long as they are read; what is local already stays where it is."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmh_ray.errors import MMHError
from mmh_ray.files import open_regular
from mmh_ray.object_store import Store, is_remote

SETTLED_S = 3600.0
"""Seconds after which a file that was written to counts as settled: far more than clocks differ."""


@contextlib.contextmanager
def staged(*uris: str) -> Iterator[list[str]]:
    """Local paths of some files, in their order. Objects are copied to this node's temporary folder, under their own
    names.

    What the block raises names the objects, not their copies.

    Raises
    ------
    DataError
        If an object is not there or cannot be read.
    ConfigError
        If no such store can be opened.
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
    """:func:`staged` for a scan and its brain mask, where it has one."""
    if not mask_uri:
        with staged(uri) as (path,):
            yield path, None
        return
    with staged(uri, mask_uri) as (path, mask_path):
        yield path, mask_path


@contextlib.contextmanager
def uploaded(folder: str) -> Iterator[str]:
    """A local folder whose files are uploaded when the block has succeeded; a folder that is local already is itself.

    Raises
    ------
    DataError
        If an object cannot be written.
    ConfigError
        If there is no such store or bucket.
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
    """Bytes of a file or an object; None where there is none."""
    if is_remote(place):
        folder, _, name = place.rpartition("/")
        return Store(folder).size(name)
    path = Path(place)
    return path.stat().st_size if path.exists() else None


def state_of(place: str) -> tuple[int, ...] | None:
    """Numbers that are others once a file or object is written to; None where that is not sure.

    Of a file they are its size, its number, and the times of the last change to its content and to anything about it;
    nobody can set the latter back. Of an object they are its size and when it was written, by the store's clock.

    They are not sure within :data:`SETTLED_S` of a change, as a clock of coarse ticks gives two changes one time. Nor are
    they of what is not there.

    Raises
    ------
    DataError
        If a store does not say.
    """
    state: tuple[int, ...]
    if is_remote(place):
        folder, _, name = place.rpartition("/")
        file = Store(folder).find(name)
        if file is None:
            return None
        written_s = file.written.timestamp()
        state = (file.size, round(written_s * 1e6))
    else:
        try:
            # opened, as a network's disk may not say before what another machine did
            with open_regular(place) as stream:
                facts = os.fstat(stream.fileno())
        except OSError:
            return None
        written_s = max(facts.st_mtime, facts.st_ctime)
        state = (facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns)
    return state if time.time() - written_s > SETTLED_S else None


@contextlib.contextmanager
def naming(uri_of: Mapping[str, str]) -> Iterator[None]:
    """Let the errors of a block name the URIs of the given local paths."""
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
    """A text with the URIs in place of the local paths."""
    for path, uri in uri_of.items():
        text = text.replace(path, uri)
    return text
