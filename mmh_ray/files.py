"""Reads untrusted files safely: only regular files are opened, sizes are limited, and no path leaves its folder."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL_BYTES = 64 * 2**20
"""Most bytes of a table, a sidecar or a settings file."""

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class UnusableFileError(OSError):
    """Not a regular file, or larger than allowed: ``strerror`` says which.

    An ``OSError``, so that code that handles unreadable files handles it, too.
    """


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading.

    The type is checked on the open descriptor, so that the file cannot be replaced between check and use. A named
    pipe does not block.

    Raises
    ------
    UnusableFileError
        If it is a pipe, a device, a socket or a folder.
    OSError
        If it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # the system's message for a socket is "No such device or address"
            raise UnusableFileError(errno.EINVAL, "a socket, not a regular file", os.fspath(path)) from error
        raise
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            what = _KINDS.get(kind, "something else")
            raise UnusableFileError(errno.EINVAL, f"{what}, not a regular file", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | Path, most: int = SMALL_BYTES) -> bytes:
    """Content of a regular file of at most ``most`` bytes.

    Raises
    ------
    UnusableFileError
        If it is not a regular file, or is larger.
    OSError
        If it cannot be read.
    """
    with open_regular(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        received = f"larger than {most / 2**20:g} MiB, the limit for such a file"
        raise UnusableFileError(errno.EFBIG, received, os.fspath(path))
    return content


def irregular(path: str | Path) -> str | None:
    """What a path is if not a regular file, such as "a named pipe"; None for a regular file or a link to one.

    The file is not opened, so code that opens it later must still use :func:`open_regular`.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return "a broken link" if os.path.islink(path) else "no file"
    except OSError as error:  # a loop of links, no permission, a disconnected network disk
        return error.strerror or str(error)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "something else")


def read_object(
    path: str | Path,
    most: int = SMALL_BYTES,
    pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Content of a file that holds one JSON object.

    Parameters
    ----------
    pairs:
        Makes a dictionary of an object's keys and values. By default, the last value of a repeated key counts.

    Raises
    ------
    ValueError
        If it is not JSON, not an object, or nested too deeply.
    OSError
        As :func:`read_bytes`.
    """
    try:
        content = json.loads(read_bytes(path, most), object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"JSON with a {type(content).__name__}, not an object")
    return content


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path lies in a folder after all links are followed; False for a loop of links."""
    try:
        return Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False
