"""NIfTI files for the tests, byte by byte: nibabel would not write most of the damaged headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (9, 10, 11)
SIZES = (1.0, 1.1, 1.2)
AFFINE = np.diag([*SIZES, 1.0])


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "<i2") -> np.ndarray:
    """Distinct small numbers in every voxel."""
    return (np.arange(1, 1 + np.prod(shape)) % 100).astype(dtype).reshape(shape, order="F")


def extension(content: bytes, code: int = 6, order: str = "<") -> bytes:
    """A header extension: size and code, then the content, filled up to a multiple of 16 bytes."""
    size = -(-(8 + len(content)) // 16) * 16
    return np.array([size, code], f"{order}i4").tobytes() + content.ljust(size - 8, b"\0")


def nifti(
    data: np.ndarray | None = None,
    version: int = 1,
    extensions: bytes = b"",
    after: bytes = b"",
    **fields: Any,
) -> bytes:
    """A file with this content, in the voxels' byte order.

    Parameters
    ----------
    extensions:
        Bytes between the header and the voxels; if there are any, the header declares extensions.
    after:
        What follows the voxels.
    fields:
        Fields of the header that are changed; for those with several numbers a dictionary of those that change.
    """
    data = voxels() if data is None else data
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    header = kind(endianness=">" if data.dtype.byteorder == ">" else "<")
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_sform(AFFINE, 1)
    header.set_qform(AFFINE, 1)
    header["vox_offset"] = header.single_vox_offset + len(extensions)
    for name, value in fields.items():
        if isinstance(value, dict):
            for place, number in value.items():
                header[name][place] = number
        else:
            header[name] = value
    told = bytes([bool(extensions), 0, 0, 0])
    return header.binaryblock + told + extensions + data.tobytes(order="F") + after


def put(path: Path, content: bytes) -> Path:
    """A file with this content."""
    path.write_bytes(content)
    return path
