"""Reads the header of an untrusted NIfTI file in bounded memory, and checks it before anything else is allocated.

nibabel interprets the header's fields. This module checks that they are possible, because nibabel silently repairs
some impossible values and fails on others.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

import nibabel as nib
import numpy as np

from mmh_ray.errors import DataError
from mmh_ray.imaging.other_formats import refuse_other_format

SMALLEST_MM = 0.02
LARGEST_MM = 30.0
"""Smallest and largest voxel size; beyond them the unit must be wrong."""

MOST_EXTENSION_BYTES = 64 * 2**20
"""Largest size of the header extensions that are read; real ones take some kilobytes."""
_MOST_VOXEL_BYTES = 8
_XFORM_CODES = range(6)
"""Valid values of sform_code and qform_code."""
_MM_PER_UNIT = {1: ("metre", 1e3), 3: ("micron", 1e-3)}
"""Units of length other than the millimetre, by the lowest three bits of `xyzt_units`."""
RECONVERT = "Convert the image again."

ByteOrder = Literal["<", ">"]


@dataclass(frozen=True)
class Layout:
    """How the two versions of NIfTI differ: nibabel's class, size of the header, position and value of its magic."""

    kind: type[nib.Nifti1Header]
    size: int
    magic_at: int
    magic: bytes
    pair_magic: bytes

    @property
    def first_offset(self) -> int:
        """First possible offset of the voxels: after the header and the 4 bytes that declare extensions."""
        return self.size + 4


_LAYOUTS = (
    Layout(nib.Nifti1Header, 348, 344, b"n+1\0", b"ni1\0"),
    Layout(nib.Nifti2Header, 540, 4, b"n+2\0", b"ni2\0"),
)


@dataclass(frozen=True)
class NiftiHeader:
    """A NIfTI header whose axes were checked; the methods check the other fields.

    Attributes
    ----------
    path:
        The file, for messages.
    fields:
        The fields as stored in the file.
    shape:
        Voxels along each axis, at least one; 1 to 7 axes.
    layout:
        Layout of its NIfTI version.
    byte_order:
        Byte order of all its numbers.
    """

    path: str
    fields: nib.Nifti1Header
    shape: tuple[int, ...]
    layout: Layout
    byte_order: ByteOrder

    @cached_property
    def offset(self) -> int:
        """Where the voxels begin, in bytes.

        Raises
        ------
        DataError
            If it is not a whole number, lies within the header or more than 64 MiB after it. With an offset inside the
            header, header bytes would be read as voxels and every voxel would be shifted.
        """
        offset = float(self.fields["vox_offset"])
        first = self.layout.first_offset
        last = first + MOST_EXTENSION_BYTES
        if not first <= offset <= last or offset != math.floor(offset):
            received = f"{self.path}: unreadable (vox_offset {offset:.9g}, where the voxels begin)"
            expected = f"a whole number of bytes from {first}, after the header, to {last}"
            raise DataError(received, expected, RECONVERT)
        return int(offset)

    def voxel_type(self) -> np.dtype:
        """Type of the stored voxels, in the file's byte order.

        Raises
        ------
        DataError
            Unless each voxel is one integer or real number of at most 64 bits.
        """
        with contextlib.suppress(KeyError):  # a type that nibabel does not know
            stored = self.fields.get_data_dtype()
            if stored.kind in "iuf" and 0 < stored.itemsize <= _MOST_VOXEL_BYTES:
                return stored
        received = f"{self.path}: voxels of type {self.fields.get_value_label('datatype')}"
        remedy = "RGB and complex images have no single intensity: convert."
        raise DataError(received, "one number per voxel", remedy)

    def scaling(self) -> tuple[float, float]:
        """Slope and intercept that convert stored numbers to intensities; 1 and 0 if the slope is 0 or NaN (unset).

        Raises
        ------
        DataError
            If they are not finite.
        """
        slope = float(self.fields["scl_slope"])
        inter = float(self.fields["scl_inter"])
        if slope == 0 or math.isnan(slope):
            return 1.0, 0.0
        if not math.isfinite(slope) or not math.isfinite(inter):
            received = f"{self.path}: scl_slope {slope:g} and scl_inter {inter:g}"
            raise DataError(received, "finite numbers", "Restore them, or convert the image again.")
        return slope, inter

    def affine(self) -> np.ndarray:
        """``(4, 4)`` float64, voxel indices to millimetres: from the sform, else the qform, else the voxel sizes.

        Raises
        ------
        DataError
            If a code is unknown, or if the fields that define the matrix are missing or contradictory.
        """
        self._check_geometry_fields()
        header = self.as_nibabel
        try:
            with np.errstate(all="ignore"):  # `check_geometry` refuses a matrix that is not finite
                affine = np.asarray(header.get_best_affine(), np.float64)
        except Exception as error:  # which error nibabel raises for odd quaternions depends on its version
            received = f"{self.path}: qform that is not a rotation ({error})"
            raise DataError(received, "an orientation", "Restore the sform or qform.") from error
        self._check_unit(affine)
        return affine

    @cached_property
    def as_nibabel(self) -> nib.Nifti1Header:
        """The header as nibabel returns it for a loaded image: without scaling and offset, which belong to the file.

        Its extensions are filled in when the voxels are read.
        """
        try:
            header = self.fields.copy()
            header.set_data_offset(0)
            header.check_fix()
            header.set_slope_inter(None, None)
        except Exception as error:  # whatever nibabel cannot parse is a fault of the file
            raise unreadable(self.path, f"header: {error}") from error
        return header

    def _check_geometry_fields(self) -> None:
        """Raise DataError where nibabel would continue with made-up values: another matrix, or a voxel of 1 mm."""
        sform = int(self.fields["sform_code"])
        qform = int(self.fields["qform_code"])
        if sform not in _XFORM_CODES or qform not in _XFORM_CODES:
            received = f"{self.path}: sform_code {sform} and qform_code {qform}"
            raise DataError(received, "0 to 5", "Restore the sform or qform.")
        handedness, *sizes = self.fields["pixdim"][:4].tolist()
        are_finite = np.isfinite(sizes).all()
        lacks_size = sform == 0 and 0 in sizes[: len(self.shape)]  # without an sform, sizes make the matrix
        if not are_finite or lacks_size:
            shown = " x ".join(f"{size:g}" for size in sizes)
            received = f"{self.path}: voxels of {shown} mm (pixdim)"
            raise DataError(received, f"{SMALLEST_MM:g} to {LARGEST_MM:g} mm", "Restore the voxel size.")
        if sform == 0 and qform != 0 and handedness not in (-1, 0, 1):
            received = f"{self.path}: pixdim[0] {handedness:.9g} with a qform"
            raise DataError(received, "1 or -1, which distinguishes left and right", "Restore the sform or qform.")

    def _check_unit(self, affine: np.ndarray) -> None:
        """Raise DataError if the header names another unit and the sizes are plausible in it.

        Other readers ignore the unit and would treat the sizes as millimetres.
        """
        unit = int(self.fields["xyzt_units"]) % 8
        if unit not in _MM_PER_UNIT:
            return
        name, mm = _MM_PER_UNIT[unit]
        with np.errstate(all="ignore"):
            sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if sizes.min() * mm >= SMALLEST_MM and sizes.max() * mm <= LARGEST_MM:
            shown = " x ".join(f"{size:.4g}" for size in sizes)
            received = f"{self.path}: voxels of {shown}, in the unit {name} (xyzt_units)"
            raise DataError(received, "millimetres", "Write sform, qform and pixdim in mm, and set xyzt_units to 2.")


def unreadable(path: str | Path, what: object) -> DataError:
    """The error for a file that is damaged, truncated or not NIfTI."""
    received = f"{path}: unreadable ({what})"
    expected = "a complete NIfTI file"
    return DataError(received, expected, "Copy or convert it again.")


def parse_header(stream: IO[bytes], path: str | Path) -> NiftiHeader:
    """Read the header from the start of a file: 348 or 540 bytes. The stream is left at the extensions.

    Raises
    ------
    DataError
        If it is not a single-file NIfTI, or its axes are impossible.
    OSError, EOFError, zlib.error
        From reading the file.
    """
    layout, order, block = _read_block(stream, path)
    fields = layout.kind(block, order, check=False)
    return NiftiHeader(str(path), fields, _shape(fields, path), layout, order)


def _read_block(stream: IO[bytes], path: str | Path) -> tuple[Layout, ByteOrder, bytes]:
    """The layout and byte order, both recognised by the header's size field, and the bytes of the header."""
    shortest = _LAYOUTS[0].size
    block = stream.read(shortest)
    refuse_other_format(block, path)
    if len(block) < shortest:
        raise unreadable(path, f"it ends after {len(block)} bytes")
    for layout in _LAYOUTS:
        order = _order_with(block, layout.size)
        if order is None:
            continue
        block += stream.read(layout.size - shortest)
        if len(block) < layout.size:
            raise unreadable(path, f"it ends after {len(block)} bytes")
        _check_magic(block[layout.magic_at :][:4], layout, path)
        return layout, order, block
    raise unreadable(path, "it does not begin with the size of a NIfTI header")


def _order_with(block: bytes, size: int) -> ByteOrder | None:
    """The byte order in which a block begins with this size; None if neither does."""
    if block.startswith(size.to_bytes(4, "little")):
        return "<"
    if block.startswith(size.to_bytes(4, "big")):
        return ">"
    return None


def _check_magic(magic: bytes, layout: Layout, path: str | Path) -> None:
    if magic == layout.magic:
        return
    received = f"{path}: an Analyze header, or a damaged one (magic {magic!r})"
    if magic == layout.pair_magic:
        received = f"{path}: the header of a pair (.hdr and .img)"
    raise DataError(received, "header and voxels in one NIfTI file", "Convert it, for example with mri_convert.")


def _shape(fields: nib.Nifti1Header, path: str | Path) -> tuple[int, ...]:
    axes, *sizes = (int(size) for size in fields["dim"])
    if not 1 <= axes <= len(sizes):
        raise unreadable(path, f"the header gives it {axes} axes (dim[0])")
    shape = tuple(sizes[:axes])
    if min(shape) < 1:
        received = f"{path}: shape {shape}, with an axis of {min(shape)} voxels"
        raise DataError(received, "one voxel or more along each axis", f"Restore `dim` in the header. {RECONVERT}")
    return shape
