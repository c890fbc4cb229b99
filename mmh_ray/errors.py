"""Defines errors that say what was received, what was expected and what to do about it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from mmh_ray.files import UnusableFileError

MOST_SHOWN = 1500
"""Most characters of each part of an error: it may quote untrusted text of any length."""
_CUT = " [...] "


class MMHError(Exception):
    """Base of every error that a user can cause and fix.

    A part longer than :data:`MOST_SHOWN` characters keeps only its beginning and its end.

    Parameters
    ----------
    received:
        What the program found.
    expected:
        What it needs instead.
    remedy:
        What the user can do.
    """

    def __init__(self, received: str, expected: str, remedy: str) -> None:
        self.received = _shortened(received)
        self.expected = _shortened(expected)
        self.remedy = _shortened(remedy)
        super().__init__(f"{self.received}; expected {self.expected}. {self.remedy}")

    def __reduce__(self):  # so that it can be sent from a worker process to the driver
        return type(self), (self.received, self.expected, self.remedy)


def _shortened(part: str) -> str:
    if len(part) <= MOST_SHOWN:
        return part
    end = MOST_SHOWN // 3
    return part[: MOST_SHOWN - len(_CUT) - end] + _CUT + part[-end:]


class ConfigError(MMHError):
    """Unusable arguments or configuration (exit code 2)."""


class DataError(MMHError):
    """An image, a table or an archive that cannot be used."""


class MaskError(DataError):
    """A brain mask that does not fit its scan."""


class RefusedError(DataError):
    """An image that must not be harmonized, because the model is not made for such scans."""


class ModelError(MMHError):
    """A model bundle that is missing, damaged or does not fit the data."""


@contextlib.contextmanager
def naming_mask(path: str | None) -> Iterator[None]:
    """Prepend the mask's file to the message of a :class:`MaskError`; ``path`` is None for an estimated mask."""
    try:
        yield
    except MaskError as error:
        if not path:
            raise
        raise MaskError(f"{path}: {error.received}", error.expected, error.remedy) from error


_PERMISSION = "the right to read and write it", "Change its permissions, or run as another user."
_ROOM = "room for the whole of it", "Free some space or raise the quota, then run again."
_OF_FILES = {
    errno.ENOENT: ("the file that was found there before", "Put it back, or remove it from the archive."),
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
}
"""System error number to what is expected and the remedy."""
_OF_ANY_FILE = "a file that can be read and written", "Check its disk, then run again."


def data_error(error: Exception, path: str) -> MMHError:
    """Turn any error about the image at ``path`` into an MMHError; an MMHError is returned unchanged."""
    if isinstance(error, MMHError):
        return error
    if isinstance(error, UnusableFileError):
        received = f"{error.filename or path}: {error.strerror}"
        return DataError(received, "a regular file of a usual size", "Put the file itself there.")
    if isinstance(error, OSError):
        expected, remedy = _OF_FILES.get(error.errno or 0, _OF_ANY_FILE)
        return DataError(f"{error.filename or path}: {error.strerror or error}", expected, remedy)
    received = f"{path}: {type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        remedy = "Limit the memory of a run by harmonize.memory_gb (--mem-gb), or use a larger machine."
        return DataError(received, "enough memory", remedy)
    return DataError(received, "no error", "Run again; if it happens again, report it with this line.")
