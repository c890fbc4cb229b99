"""Reads the bytes of an image file, decompressed if it is gzip, in constant memory and no further than requested."""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isal import isal_zlib

from mmh_ray.files import open_regular

_GZIP = b"\x1f\x8b"
"""First bytes of every gzip member."""
_GZIP_WINDOW = 31
"""Tells zlib to parse gzip's header and to verify checksum and length."""
_MOST_UNPACKED = 1032
"""Largest ratio of decompressed to compressed bytes in deflate: a code of two bits can stand for 258 bytes."""
_PIECE = 256 * 1024
"""Compressed bytes that are read at a time."""
_SLACK = 2**20
"""Compressed bytes that may decompress to nothing: names, comments, padding."""
_DAMAGED: Any = isal_zlib.error
"""The error that isal raises; it is not a ``zlib.error``, and isal's type hints declare it as an instance."""


@dataclass(frozen=True)
class Unpacked:
    """An open file.

    Attributes
    ----------
    stream:
        Its decompressed bytes. Reading raises EOFError if compressed data are truncated, zlib.error if damaged.
    size:
        Bytes on disk.
    packed:
        Whether the content is gzip, whatever the file's name.
    """

    stream: io.BufferedReader
    size: int
    packed: bool

    def can_hold(self, count: int) -> bool:
        """Whether a file of this size can contain ``count`` decompressed bytes; check this before allocating them."""
        most = _MOST_UNPACKED * self.size if self.packed else self.size
        return count <= most


@contextlib.contextmanager
def open_unpacked(path: str | Path) -> Iterator[Unpacked]:
    """Open a regular file for reading, and decompress it if it begins like gzip.

    Archives contain compressed files without `.gz` in their names and plain files with it, so the content decides.

    Raises
    ------
    OSError
        If it cannot be opened, or is not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.peek(len(_GZIP)).startswith(_GZIP):
            yield Unpacked(io.BufferedReader(_Gunzip(file), _PIECE), size, packed=True)
        else:
            yield Unpacked(file, size, packed=False)


class _Gunzip(io.RawIOBase):
    """Decompresses one or several gzip members.

    ``gzip.GzipFile`` would read a member's name byte by byte, and any number of empty members: a small file can keep it
    busy for minutes.
    """

    def __init__(self, source: io.BufferedReader) -> None:
        self._source = source
        self._member = isal_zlib.decompressobj(_GZIP_WINDOW)
        self._pending = b""
        self._taken = 0
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from its start; returns the number of bytes, 0 after the last checksum."""
        room = len(buffer)
        while room:
            if self._member.eof and not self._begin_member():
                break
            piece = self._decompressed(room)
            ended = self._member.eof
            self._pending = self._member.unused_data if ended else self._member.unconsumed_tail
            if piece:
                buffer[: len(piece)] = piece
                self._given += len(piece)
                return len(piece)
            if not ended and not self._pending and not self._take():
                raise EOFError("the compressed data end early")
        return 0

    def _decompressed(self, most: int) -> bytes:
        """Decompress some of the pending bytes."""
        try:
            return self._member.decompress(self._pending, most)
        except _DAMAGED as error:
            raise zlib.error(str(error)) from error

    def _begin_member(self) -> bool:
        """Start the next member, False at the end of the file; zeros between and after members are padding."""
        self._pending = self._pending.lstrip(b"\0")
        while not self._pending:
            if not self._take():
                return False
            self._pending = self._pending.lstrip(b"\0")
        if not self._pending.startswith(_GZIP[:1]):
            raise zlib.error("the compressed data are followed by something that is not gzip")
        self._member = isal_zlib.decompressobj(_GZIP_WINDOW)
        return True

    def _take(self) -> bool:
        """Read another piece; False at the end of the file.

        Compression never enlarges real data by more than a few percent.
        """
        self._pending = self._source.read(_PIECE)
        self._taken += len(self._pending)
        if self._taken > _SLACK + self._given + self._given // 4:
            raise zlib.error("it contains almost no data")
        return bool(self._pending)
