"""Lists, fetches and uploads whole objects of a folder in an object store."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs

from mmh_ray.errors import ConfigError, DataError, ModelError
from mmh_ray.files import SMALL_BYTES

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
"""Schemes that pyarrow can open."""
ARCHIVE_SCHEMES = ("s3", "gs", "gcs")
"""Schemes that archives and derivatives may have."""
MOST_BYTES = 4 * 2**30
"""Largest bundle that is fetched, in bytes: twice the weights of the largest model that is loaded."""
MOST_FILES = 1000
"""Most files of a bundle that is fetched: a bundle with an adapter per site has a few hundred."""

CONNECTIONS = 16
"""Objects fetched at a time."""
GOOGLE_RETRY_S = 60
"""Seconds for which Google's client retries. Its default is 15 minutes, even if only the credentials are missing."""

_GOOGLE = ("gs://", "gcs://")
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://")
_USER = re.compile(r"(?<=://)[^/?@]*@")
_DELAYED = "allow_delayed_open"
_RETRY = "retry_limit_seconds"


def is_remote(uri: str) -> bool:
    """Whether a URI names a place in an object store."""
    match = _SCHEME.match(uri)
    return match is not None and match["scheme"] in SCHEMES


def local_path(place: str) -> str:
    """The path of a ``file://`` URI; any other text is returned unchanged.

    >>> local_path("file:///data/my%20scans"), local_path("s3://bucket/scans")
    ('/data/my scans', 's3://bucket/scans')
    """
    if not place.startswith("file://"):
        return place
    return unquote(place.removeprefix("file://").removeprefix("localhost"))


def join_uri(uri: str, *names: str) -> str:
    """URI or path of something inside a folder. Options after ``?`` are kept, keys before ``@`` are removed.

    >>> join_uri("s3://key:secret@bucket/runs?region=eu-west-1", "first", "bundle")
    's3://bucket/runs/first/bundle?region=eu-west-1'
    """
    place = uri
    options = ""
    if "://" in uri:
        place, mark, after_mark = _without_keys(uri).partition("?")
        options = mark + after_mark
    parts = [place.rstrip("/"), *names]
    return "/".join(parts) + options


def open_folder(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """File system of a URI, and the folder in it; a plain path is a local folder.

    On S3, a small file is uploaded in one request. A multipart upload that a killed process leaves unfinished would be
    invisible, but still be billed.

    Raises
    ------
    ConfigError
        If the store cannot be opened.
    """
    if "://" not in uri:
        return pa.fs.LocalFileSystem(), str(Path(uri).absolute())
    options = uri.partition("?")[2]
    opened = uri
    if uri.startswith("s3://") and _DELAYED not in options:
        opened = f"{uri}{'&' if options else '?'}{_DELAYED}=true"
    elif uri.startswith(_GOOGLE) and _RETRY not in options:
        opened = f"{uri}{'&' if options else '?'}{_RETRY}={GOOGLE_RETRY_S}"
    try:
        store, folder = pa.fs.FileSystem.from_uri(opened)
    except (OSError, ValueError, pa.ArrowException) as error:
        received = f"{loggable_uri(uri)}: {str(error).replace(opened, loggable_uri(uri))}"
        remedy = f"Check the bucket, and {_credentials(uri)} of the environment."
        raise ConfigError(received, "a URI such as s3://bucket/folder", remedy) from error
    return store, folder.rstrip("/")


def open_folder_to_write(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """:func:`open_folder`, with a ConfigError if Google's store has no such bucket.

    Only there does pyarrow create a missing bucket, even if its name was mistyped.
    """
    store, folder = open_folder(uri)
    if uri.startswith(_GOOGLE):
        _check_bucket(store, folder, loggable_uri(uri))
    return store, folder


def fetch_bundle(uri: str, facts: str) -> tuple[Path, str]:
    """Copy a bundle to a temporary folder that is removed when the process ends.

    The content of the files is not checked here.

    Parameters
    ----------
    facts:
        Name of a file that every bundle has directly in its folder.

    Returns
    -------
    tuple
        The folder, and the URI without keys, to be cited.

    Raises
    ------
    ModelError
        If there is no such folder or file, it cannot be read, it is too large for a bundle, or a name leads out of it.
    ConfigError
        If the store cannot be opened.
    """
    store, folder = open_folder(uri)
    place = loggable_uri(uri)
    remedy = "Check the URI and the permission to read it; `mmh train-global` prints where it put the bundle."
    expected = f"a model bundle, a folder with {facts}"
    try:
        entries = store.get_file_info(pa.fs.FileSelector(folder, recursive=True, allow_not_found=True))
        files = [entry for entry in entries if entry.type == pa.fs.FileType.File]
        if all(entry.path != f"{folder}/{facts}" for entry in files):
            raise ModelError(f"{place}: no {facts} there", expected, remedy)
        _check_size(files, place)
        local = Path(tempfile.mkdtemp(prefix="mmh-bundle-"))
        atexit.register(shutil.rmtree, local, ignore_errors=True)
        for entry in files:
            _fetch(store, entry.path, local / _inside(entry.path, folder, place))
    except (OSError, pa.ArrowException) as error:
        raise ModelError(f"{place}: {_one_line(error)}", expected, remedy) from error
    return local, _without_keys(uri)


def loggable_uri(uri: str) -> str:
    """The URI without keys and options, for logs and errors."""
    if "://" not in uri:
        return uri
    place, _, _ = _without_keys(uri).partition("?")
    return place


class MissingObjectError(DataError):
    """There is no such object."""


class StoredFile(NamedTuple):
    """An object of a folder: path relative to the folder, size in bytes, time of writing by the store's clock."""

    name: str
    size: int
    written: datetime


class Store:
    """A folder in an object store; its objects are named by their path relative to it.

    Credentials and the store's address come only from the environment, as the store's client defines it.

    Parameters
    ----------
    uri:
        For example ``s3://bucket/folder``.

    Attributes
    ----------
    uri:
        The URI without a slash at its end.

    Raises
    ------
    ConfigError
        If the store cannot be opened, or the URI contains keys or options, which would end up in tables and logs.
    """

    def __init__(self, uri: str) -> None:
        expected = "a URI such as s3://bucket/folder, without keys and options"
        scheme, _, place = uri.partition("://")
        if scheme not in ARCHIVE_SCHEMES:
            schemes = ", ".join(f"{name}://" for name in ARCHIVE_SCHEMES)
            raise ConfigError(loggable_uri(uri), expected, f"Use one of {schemes} or a folder.")
        if _USER.search(uri) or "?" in uri or "#" in uri:
            remedy = "Put keys, region and address into the environment of every node, or into its role."
            raise ConfigError(f"{loggable_uri(uri)} with keys or options", expected, remedy)
        self.uri = uri.rstrip("/")
        self._folder = place.rstrip("/")
        bucket = self._folder.partition("/")[0]
        self._system, _ = open_folder(f"{scheme}://{bucket}")  # only the bucket: from_uri would decode a key

    def uri_of(self, name: str) -> str:
        """URI of an object."""
        return f"{self.uri}/{name}"

    def check_bucket(self) -> None:
        """Raise ConfigError unless the bucket exists and is accessible."""
        _check_bucket(self._system, self._folder, self.uri)

    def files(self, name: str = "") -> list[StoredFile]:
        """All objects of the folder, or of a folder below it, ordered by name.

        A key that would lead out of the folder as a path is left out.

        Raises
        ------
        DataError
            If the folder cannot be listed.
        """
        folder = self._path(name) if name else self._folder
        selector = pa.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        with self._naming(name, "a folder that can be listed"):
            entries = self._system.get_file_info(selector)
        files = []
        for entry in entries:
            inner = entry.path.removeprefix(f"{self._folder}/")
            if entry.type == pa.fs.FileType.File and not _leads_out(inner):
                files.append(StoredFile(inner, entry.size, entry.mtime))
        return sorted(files)

    def has(self, name: str) -> bool:
        """Whether there is such an object; DataError if the store does not answer."""
        return self.find(name) is not None

    def find(self, name: str) -> StoredFile | None:
        """Size and time of an object, None if there is none; DataError if the store does not answer."""
        with self._naming(name, "an object that can be read"):
            entry = self._system.get_file_info(self._path(name))
        return StoredFile(name, entry.size, entry.mtime) if entry.type == pa.fs.FileType.File else None

    def get(self, name: str, path: Path) -> None:
        """Fetch an object to a local path; DataError if it is missing, incomplete or unreadable."""
        with self._naming(name, "an object that can be read"):
            _fetch(self._system, self._path(name), path)

    def get_all(self, names: Iterable[str], folder: Path) -> None:
        """Fetch objects to their relative paths in a local folder, several at a time; missing ones are skipped."""

        def get_if_present(name: str) -> None:
            with contextlib.suppress(MissingObjectError):
                self.get(name, folder / name)

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for _ in pool.map(get_if_present, names):
                pass

    def read(self, name: str) -> bytes:
        """Content of a small object; DataError if it is missing, unreadable or too large."""
        with self._naming(name, "an object that can be read"), self._system.open_input_file(self._path(name)) as source:
            if source.size() > SMALL_BYTES:
                raise OSError(f"larger than {SMALL_BYTES / 2**20:g} MiB, the limit for such a file")
            return source.read()

    def read_object(self, name: str) -> dict[str, Any]:
        """The JSON object in a small file; empty if it is missing or damaged."""
        try:
            content = json.loads(self.read(name))
        except (DataError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def put(self, path: Path, name: str) -> None:
        """Upload a local file. The object appears whole or not at all, and replaces an earlier one."""
        with self._naming(name, "an object that can be written"):
            # Not through an output stream: closing one after an error would publish the part written so far.
            pa.fs.copy_files(
                os.fspath(path),
                self._path(name),
                source_filesystem=pa.fs.LocalFileSystem(),
                destination_filesystem=self._system,
            )

    def write(self, content: bytes, name: str) -> None:
        """Upload small content in one request."""
        with (
            self._naming(name, "an object that can be written"),
            self._system.open_output_stream(self._path(name)) as sink,
        ):
            sink.write(content)

    def remove(self, name: str) -> None:
        """Remove an object; it is no error if there is none."""
        with self._naming(name, "an object that can be removed"), contextlib.suppress(FileNotFoundError):
            self._system.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    @contextlib.contextmanager
    def _naming(self, name: str, expected: str) -> Iterator[None]:
        """Turn an error of the store's client into one that names the object."""
        uri = self.uri_of(name) if name else self.uri
        remedy = f"Check that it exists, the permissions, and {_credentials(uri)} of the environment."
        try:
            yield
        except FileNotFoundError as error:
            raise MissingObjectError(f"{uri}: no such object", expected, remedy) from error
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{uri}: {_one_line(error)}", expected, remedy) from error


def _check_bucket(system: pa.fs.FileSystem, folder: str, uri: str) -> None:
    bucket = folder.partition("/")[0]
    remedy = f"Create the bucket, or check its name and {_credentials(uri)} of the environment."
    expected = "a bucket that exists and can be read"
    try:
        exists = system.get_file_info(bucket).type != pa.fs.FileType.NotFound
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{uri}: {_one_line(error)}", expected, remedy) from error
    if not exists:
        raise ConfigError(f"{uri}: no bucket {bucket}", expected, remedy)


def _credentials(uri: str) -> str:
    """Environment variables with the store's address and credentials."""
    return "GOOGLE_APPLICATION_CREDENTIALS" if uri.startswith(_GOOGLE) else "the credentials and AWS_ENDPOINT_URL"


def _one_line(error: Exception) -> str:
    """Text of an error of a store's client, as one line of limited length."""
    return " ".join(str(error).split())[:300]


def _check_size(files: list[pa.fs.FileInfo], place: str) -> None:
    count = len(files)
    total = sum(entry.size for entry in files)
    if count > MOST_FILES or total > MOST_BYTES:
        received = f"{place}: {count} files with {total} bytes"
        expected = f"a model bundle of at most {MOST_FILES} files and {MOST_BYTES} bytes"
        raise ModelError(received, expected, "Give the folder of the bundle itself.")


def _leads_out(relative: str) -> bool:
    """Whether a key, taken as a path, leads out of its folder; a key may contain anything."""
    path = PurePosixPath(relative)
    return path.is_absolute() or ".." in path.parts


def _inside(path: str, folder: str, place: str) -> str:
    """Path of a file relative to its folder; ModelError if it leads out of it."""
    relative = path.removeprefix(f"{folder}/")
    if _leads_out(relative):
        received = f"{place}: an object with the key {path[:200]!r}"
        raise ModelError(received, "files in the bundle's own folder", "Do not use a bundle that was changed by hand.")
    return relative


def _fetch(system: pa.fs.FileSystem, path: str, target: Path) -> None:
    """Copy an object to a local path; OSError if it is incomplete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with system.open_input_file(path) as source, open(target, "wb") as sink:
        size = source.size()
        shutil.copyfileobj(source, sink, 1 << 20)
    received = target.stat().st_size
    if received != size:
        raise OSError(f"only {received} of its {size} bytes were received")


def _without_keys(uri: str) -> str:
    return _USER.sub("", uri)
