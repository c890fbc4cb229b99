"""Reads folders of an archive, without hidden entries, and refuses links that leave the archive or form a loop."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mmh_ray.bids.text import printable
from mmh_ray.errors import DataError
from mmh_ray.files import irregular, is_inside

FETCH = "Fetch its content (datalad get) or remove it."
"""Remedy if a path should be a file but is not."""
_OTHER_THINGS = ("a folder", "a named pipe", "a device", "a socket", "something else")
"""Answers of :func:`~mmh_ray.files.irregular` for things that exist but are not files."""
_COPY = "Copy the file to its place (an annexed one: datalad get, then datalad unlock)."


def listing(folder: str | Path) -> list[os.DirEntry[str]]:
    """Entries of a folder ordered by name, without hidden ones.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            return sorted(shown, key=lambda entry: entry.name)
    except OSError as error:
        is_broken_link = os.path.islink(folder) and isinstance(error, FileNotFoundError)
        problem = "a broken link" if is_broken_link else error.strerror
        remedy = "Restore it or check its permissions."
        raise DataError(f"{printable(folder)}: {problem}", "a readable folder", remedy) from error


def relative_name(path: str, root: Path) -> str:
    """Path relative to the archive, with slashes, for messages and rows; ``path`` must begin with ``root``."""
    below = path[len(os.fspath(root)) :].lstrip(os.sep)
    return printable(below.replace(os.sep, "/"))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, a link to one or a broken link, so that a broken link is reported and not ignored."""
    try:
        return entry.is_dir() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # reading the folder raises an error with the reason
        return True


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to an existing folder."""
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def check_folder(entry: os.DirEntry[str], root: Path) -> None:
    """Raise DataError for a link to a folder outside the archive, or to a folder that contains the link."""
    if not entry.is_symlink():
        return
    if not is_inside(entry.path, root):
        remedy = "Copy the folder to its place."
        raise DataError(f"{printable(entry.path)}: a link out of the archive", "a folder inside it", remedy)
    if is_inside(os.path.dirname(entry.path), entry.path):
        received = f"{printable(entry.path)}: a link to a folder that it lies in"
        raise DataError(received, "a folder that does not contain the link", "Remove the link.")


def check_file(path: str | Path, root: Path, shown: str, is_link: bool = True) -> None:
    """Raise DataError unless this is a regular file in the archive, or a link to one.

    Parameters
    ----------
    shown:
        Name of the file in the error.
    is_link:
        False if the path is known not to be a link. Then it is not checked for leading out of the archive.
    """
    problem = irregular(path)
    is_loop = problem == os.strerror(errno.ELOOP)
    if is_link and not is_loop and not is_inside(path, root):
        raise DataError(f"{shown}: a link out of the archive", "a file inside it", _COPY)
    if problem in _OTHER_THINGS:
        problem = f"{problem}, not a file"
    if problem is not None:
        raise DataError(f"{shown}: {problem}", "a regular file", FETCH)


def check_entry(entry: os.DirEntry[str], root: Path, shown: str) -> None:
    """:func:`check_file` for an entry of a listing; nothing more is read for a regular file."""
    if not entry.is_file(follow_symlinks=False):
        check_file(entry.path, root, shown, entry.is_symlink())


def walk(
    folder: str | Path, unread: Callable[[str], object], enter: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield a folder and all folders below it with their entries, ordered by path; no link is followed.

    Parameters
    ----------
    unread:
        Called with the path of a folder that cannot be read.
    enter:
        Whether to enter folders with this name.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        current = waiting.pop()
        try:
            entries = listing(current)
        except DataError:
            unread(current)
            continue
        yield current, entries
        inner = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and enter(entry.name):
                inner.append(entry.path)
        waiting += reversed(inner)  # pop() takes the last one first
