"""The bytes of an image file, unpacked where they are gzip: in constant memory, and no more of them than are asked
for."""

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
"""How every gzip member begins."""
_GZIP_WINDOW = 31
"""Tells zlib to read gzip's header and to hold the data against its checksum and length."""
_MOST_UNPACKED = 1032
"""Bytes that deflate can make of one at most: 258 of them from a code of two bits."""
_PIECE = 256 * 1024
"""Packed bytes read at a time."""
_SLACK = 2**20
"""Packed bytes that may hold nothing: names, comments, padding."""
_DAMAGED: Any = isal_zlib.error
"""What isal raises, which is no ``zlib.error``; its type hints take the class for an instance."""


@dataclass(frozen=True)
class Unpacked:
    """An open file.

    Attributes
    ----------
    stream:
        Its bytes, unpacked. Reading raises EOFError where packed data are cut, zlib.error where they are damaged.
    size:
        Bytes on disk.
    packed:
        Whether it is gzip by its content, whatever its name says.
    """

    stream: io.BufferedReader
    size: int
    packed: bool

    def can_hold(self, count: int) -> bool:
        """Whether a file of this size can hold so many unpacked bytes; asked before anything is allocated for them."""
        most = _MOST_UNPACKED * self.size if self.packed else self.size
        return count <= most


@contextlib.contextmanager
def open_unpacked(path: str | Path) -> Iterator[Unpacked]:
    """Open a regular file for reading, through gunzip if it begins as gzip does.

    Archives hold packed files without `.gz` in their names and plain ones with it: the content decides.

    Raises
    ------
    OSError
        If it cannot be opened, or is no regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.peek(len(_GZIP)).startswith(_GZIP):
            yield Unpacked(io.BufferedReader(_Gunzip(file), _PIECE), size, packed=True)
        else:
            yield Unpacked(file, size, packed=False)


class _Gunzip(io.RawIOBase):
    """Unpacked bytes of one or several gzip members.

    Not ``gzip.GzipFile``, which reads a member's name byte by byte and goes through any number of empty members: a
    small file can keep it busy for minutes.
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
        """Fill a buffer from its start; 0 bytes at the end, after the last checksum."""
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
                raise EOFError("the packed data end early")
        return 0

    def _decompressed(self, most: int) -> bytes:
        """Unpack some of the pending bytes."""
        try:
            return self._member.decompress(self._pending, most)
        except _DAMAGED as error:
            raise zlib.error(str(error)) from error

    def _begin_member(self) -> bool:
        """Go on with the next member; zeros between and after members are padding."""
        self._pending = self._pending.lstrip(b"\0")
        while not self._pending:
            if not self._take():
                return False
            self._pending = self._pending.lstrip(b"\0")
        if not self._pending.startswith(_GZIP[:1]):
            raise zlib.error("what follows the packed data is no gzip")
        self._member = isal_zlib.decompressobj(_GZIP_WINDOW)
        return True

    def _take(self) -> bool:
        """Read another piece; False at the end of the file. Honest data never grow by more than a few percent when
        packed."""
        self._pending = self._source.read(_PIECE)
        self._taken += len(self._pending)
        if self._taken > _SLACK + self._given + self._given // 4:
            raise zlib.error("hardly anything is packed in it")
        return bool(self._pending)
