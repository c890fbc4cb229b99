"""Reads the extensions between a NIfTI header and its voxels, which are written back unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Literal

from nibabel.nifti1 import Nifti1Extension

from mmh_ray.errors import DataError
from mmh_ray.imaging.nifti_header import RECONVERT, NiftiHeader, unreadable

_MOST_EXTENSIONS = 1000
"""Largest number of extensions that are read; real files have a few."""
_SMALLEST = 16
"""Bytes of the smallest extension, including its own header of 8."""


def read_extensions(header: NiftiHeader, stream: IO[bytes]) -> tuple[list[Nifti1Extension], bool]:
    """Read from the end of the header to where the voxels begin, at most 64 MiB. The contents are not interpreted.

    Returns
    -------
    tuple[list[Nifti1Extension], bool]
        The extensions, and whether none was found although the header declares some.

    Raises
    ------
    DataError
        If the offset of the voxels is impossible or contradicts the extensions: the voxels may begin elsewhere.
    OSError, EOFError, zlib.error
        From reading the file.
    """
    size = header.offset - header.layout.size
    area = stream.read(size)
    if len(area) < size:
        raise unreadable(header.path, f"it ends before byte {header.offset}, where the voxels begin (vox_offset)")
    if not area[0]:
        return [], False
    extensions = list(_split(area[4:], header))
    return extensions, not extensions


def _split(area: bytes, header: NiftiHeader) -> Iterator[Nifti1Extension]:
    """Split the bytes into extensions; zeros may follow the last one."""
    order: Literal["little", "big"] = "little" if header.byte_order == "<" else "big"
    at = 0
    for _ in range(_MOST_EXTENSIONS):
        left = len(area) - at
        if left < _SMALLEST or not any(area[at : at + 8]):
            break
        size = int.from_bytes(area[at : at + 4], order, signed=True)
        code = int.from_bytes(area[at + 4 : at + 8], order, signed=True)
        if not _SMALLEST <= size <= left:
            raise _misplaced(header, f"a header extension of {size} bytes where {left} are left")
        yield Nifti1Extension(code, area[at + 8 : at + size].rstrip(b"\0"))
        at += size
    else:
        raise _misplaced(header, f"{_MOST_EXTENSIONS} header extensions or more")
    rest = area[at:]
    if len(rest) >= _SMALLEST and rest.strip(b"\0"):
        raise _misplaced(header, f"{len(rest)} unknown bytes between the header's extensions and the voxels")


def _misplaced(header: NiftiHeader, what: str) -> DataError:
    expected = f"header extensions that end at byte {header.offset}, where the voxels begin (vox_offset)"
    return DataError(f"{header.path}: {what}", expected, RECONVERT)
