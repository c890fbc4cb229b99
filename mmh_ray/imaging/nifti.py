"""Reads the voxels of an untrusted NIfTI file, after checking that the file can hold what its header declares."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from mmh_ray.errors import DataError, data_error
from mmh_ray.files import UnusableFileError
from mmh_ray.imaging.nifti_extensions import read_extensions
from mmh_ray.imaging.nifti_header import NiftiHeader, parse_header, unreadable
from mmh_ray.imaging.unpacking import Unpacked, open_unpacked

_CHUNK_VOXELS = 2**17
"""Voxels that are converted at a time, so that the image is in memory only once."""
_MOST_PADDING = 16 * 1024
"""Largest number of zeros after the voxels: some programs pad the last block."""


def read_header(path: str | Path) -> NiftiHeader:
    """Read a file's header and nothing else.

    Raises
    ------
    DataError
        If it is not a regular file, cannot be read, is not a single-file NIfTI, or has impossible axes.
    """
    with open_nifti(path) as (header, _):
        return header


@contextlib.contextmanager
def open_nifti(path: str | Path) -> Iterator[tuple[NiftiHeader, Unpacked]]:
    """Open a file; yields its header and the open file, from which :func:`read_voxels` continues.

    Both come from the same bytes, even if the path is replaced meanwhile.

    Raises
    ------
    DataError
        As :func:`read_header`; reading errors inside the block become DataErrors, too.
    """
    try:
        with open_unpacked(path) as source:
            yield parse_header(source.stream, path), source
    except EOFError as error:
        raise unreadable(path, error) from error
    except zlib.error as error:
        raise unreadable(path, f"damaged gzip: {error}") from error
    except (UnusableFileError, MemoryError) as error:
        raise data_error(error, str(path)) from error
    except OSError as error:
        usual = data_error(error, str(path))
        received = f"{path}: unreadable ({error.strerror or error})"
        raise DataError(received, usual.expected, usual.remedy) from error


def check_length(header: NiftiHeader, source: Unpacked) -> None:
    """Raise DataError if a file of this size cannot hold the declared voxels; call it before allocating memory."""
    voxels = math.prod(header.shape)
    promised = header.offset + voxels * header.voxel_type().itemsize
    if not source.can_hold(promised):
        received = f"{source.size} bytes on disk, where its header declares {promised}"
        raise unreadable(header.path, received)


def read_voxels(header: NiftiHeader, source: Unpacked) -> np.ndarray:
    """Read the extensions and all voxels: float32 in the header's shape, with slope and intercept applied.

    NaN and infinities are kept. A compressed file is read to its checksum, at most 16 KiB after the voxels.

    Raises
    ------
    DataError
        If the file is shorter or longer than its header declares, if its voxel type, scaling, offset or extensions are
        impossible, or if the scaled values exceed float32.
    OSError, EOFError, zlib.error
        From reading the file.
    """
    check_length(header, source)
    stored = header.voxel_type()
    scaling = header.scaling()
    extensions, lost = read_extensions(header, source.stream)
    header.as_nibabel.extensions.extend(extensions)
    voxels = np.empty(math.prod(header.shape), np.float32)
    buffer = bytearray(_CHUNK_VOXELS * stored.itemsize)
    too_large = 0
    for start in range(0, len(voxels), _CHUNK_VOXELS):
        part = voxels[start : start + _CHUNK_VOXELS]
        chunk = memoryview(buffer)[: len(part) * stored.itemsize]
        if source.stream.readinto(chunk) < len(chunk):
            raise unreadable(header.path, f"it ends within its voxels, {header.shape} of {stored.name}")
        too_large += _convert(np.frombuffer(chunk, stored), scaling, part)
    _check_end(source.stream, header, lost)
    if too_large:
        slope, inter = scaling
        received = f"{header.path}: {too_large} voxels beyond 3.4e38 (scl_slope {slope:g}, scl_inter {inter:g})"
        remedy = "Restore the slope and the intercept, or convert the image again."
        raise DataError(received, "intensities that a 32-bit float can hold", remedy)
    return voxels.reshape(header.shape, order="F")


def _convert(stored: np.ndarray, scaling: tuple[float, float], into: np.ndarray) -> int:
    """Scale in double precision, as nibabel does; returns how many finite numbers became infinite."""
    slope, inter = scaling
    values = stored
    with np.errstate(over="ignore", invalid="ignore"):
        if slope != 1:
            values = values * np.array([slope])  # an array, so that float32 voxels also become float64
        if inter != 0:
            values = values + np.array([inter])
        into[...] = values
    if values.dtype.itemsize <= into.dtype.itemsize or np.isfinite(into).all():
        return 0
    return int(np.isfinite(stored).sum() - np.isfinite(into).sum())


def _check_end(stream: IO[bytes], header: NiftiHeader, lost_extensions: bool) -> None:
    """Raise DataError if anything but a little padding follows the voxels: they may then be shifted."""
    rest = stream.read(_MOST_PADDING + 1)
    if len(rest) > _MOST_PADDING:
        what = f"more than {_MOST_PADDING} bytes after the voxels"
    elif rest.strip(b"\0"):
        what = f"{len(rest)} bytes after the voxels that are not padding"
    elif rest and lost_extensions:
        what = f"{len(rest)} bytes more, and header extensions that vox_offset {header.offset} leaves no room for"
    else:
        return
    received = f"{header.path}: {what}"
    expected = f"the voxels that its header declares, {header.shape} of {header.voxel_type().name}"
    raise DataError(received, expected, "Convert the image again: header and voxels do not match.")
