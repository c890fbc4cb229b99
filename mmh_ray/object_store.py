"""Folders in an object store: what lies below one has a URI of its own, and a folder can be fetched whole."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs

from mmh_ray.errors import ConfigError, ModelError

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
"""Schemes of the stores that pyarrow opens."""
MOST_BYTES = 4 * 2**30
"""Most bytes of a bundle that are fetched: twice the weights of the largest model that is loaded."""
MOST_FILES = 1000
"""Most files of a bundle that are fetched: a bundle with an adapter per site has a few hundred."""

_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://")
_USER = re.compile(r"(?<=://)[^/?@]*@")
_DELAYED = "allow_delayed_open"


def is_remote(uri: str) -> bool:
    """Whether a URI names a place in an object store."""
    match = _SCHEME.match(uri)
    return match is not None and match["scheme"] in SCHEMES


def join_uri(uri: str, *names: str) -> str:
    """The URI, or the path, of what lies in a folder; the options behind ``?`` stay, keys before ``@`` do not.

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
    """File system of a URI and the folder on it.

    A small file goes to S3 in one request: an upload in parts that a killed process leaves unfinished is paid for, and not seen.

    Raises
    ------
    ConfigError
        If no such store can be opened.
    """
    options = uri.partition("?")[2]
    opened = uri
    if uri.startswith("s3://") and _DELAYED not in options:
        opened = f"{uri}{'&' if options else '?'}{_DELAYED}=true"
    try:
        store, folder = pa.fs.FileSystem.from_uri(opened)
    except (OSError, ValueError, pa.ArrowException) as error:
        received = f"{loggable_uri(uri)}: {str(error).replace(opened, loggable_uri(uri))}"
        remedy = "Check the bucket, and the credentials and AWS_ENDPOINT_URL of the environment."
        raise ConfigError(received, "a URI such as s3://bucket/folder", remedy) from error
    return store, folder.rstrip("/")


def fetch_bundle(uri: str, facts: str) -> tuple[Path, str]:
    """Copy a bundle to a temporary folder, removed when the process ends; returns it and the URI to cite, which holds no keys.

    Nothing is read but names, sizes and bytes: what the files hold is for the caller to check.

    Parameters
    ----------
    facts:
        File by which the bundle is known, directly in its folder.

    Raises
    ------
    ModelError
        If there is no such folder or file, it cannot be read, is larger than a bundle can be, or a name leads out of it.
    ConfigError
        If no such store can be opened.
    """
    store, folder = open_folder(uri)
    place = loggable_uri(uri)
    remedy = "Check the URI and the right to read it; `mmh train-global` prints where it put the bundle."
    expected = f"a model bundle, a folder with {facts}"
    try:
        found = store.get_file_info(pa.fs.FileSelector(folder, recursive=True, allow_not_found=True))
        files = [entry for entry in found if entry.type == pa.fs.FileType.File]
        if all(entry.path != f"{folder}/{facts}" for entry in files):
            raise ModelError(f"{place}: no {facts} there", expected, remedy)
        _check_size(files, place)
        local = Path(tempfile.mkdtemp(prefix="mmh-bundle-"))
        atexit.register(shutil.rmtree, local, ignore_errors=True)
        for entry in files:
            _fetch(store, entry.path, local / _inside(entry.path, folder, place))
    except (OSError, pa.ArrowException) as error:
        raise ModelError(f"{place}: {' '.join(str(error).split())[:300]}", expected, remedy) from error
    return local, _without_keys(uri)


def loggable_uri(uri: str) -> str:
    """The URI as a log or an error may show it: without keys and options."""
    if "://" not in uri:
        return uri
    place, _, _ = _without_keys(uri).partition("?")
    return place


def _check_size(files: list[pa.fs.FileInfo], place: str) -> None:
    count = len(files)
    total = sum(entry.size for entry in files)
    if count > MOST_FILES or total > MOST_BYTES:
        received = f"{place}: {count} files with {total} bytes"
        expected = f"a model bundle of at most {MOST_FILES} files and {MOST_BYTES} bytes"
        raise ModelError(received, expected, "Name the bundle's own folder.")


def _inside(path: str, folder: str, place: str) -> PurePosixPath:
    """Path of a file relative to its folder; an object's key may hold anything, also the way out of a folder."""
    relative = PurePosixPath(path.removeprefix(f"{folder}/"))
    if relative.is_absolute() or ".." in relative.parts:
        received = f"{place}: an object with the key {path[:200]!r}"
        raise ModelError(received, "files in the bundle's own folder", "Do not use a bundle that was changed by hand.")
    return relative


def _fetch(store: pa.fs.FileSystem, path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        store.open_input_stream(path) as source,
        open(target, "wb") as sink,
    ):
        shutil.copyfileobj(source, sink, 1 << 20)


def _without_keys(uri: str) -> str:
    return _USER.sub("", uri)
