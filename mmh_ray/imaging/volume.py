"""One 3-D image with the geometry and the header that must survive the journey."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal.igzip import IGzipFile

from mmh_ray.errors import DataError
from mmh_ray.imaging.memory import free_memory
from mmh_ray.imaging.nifti import check_length, open_nifti, read_header, read_voxels
from mmh_ray.imaging.nifti_header import LARGEST_MM, SMALLEST_MM
from mmh_ray.provenance import whole_file

FARTHEST_MM = 1e5
"""Distance from the origin beyond which no scanner is, and coordinates lose their digits."""
BYTES_PER_VOXEL = 100
"""Generous bound on the memory that preparing and harmonizing a scan takes, per voxel of its own grid.

77 were seen at 192 voxels an axis (521 MiB, of which 159 MiB are taken at 64 already:
`python benchmarks/memory.py --scan 64 192`).
"""
READING_BYTES_PER_VOXEL = 8
"""The same for reading it only; 5.2 were seen at 256 x 256 x 170 voxels, whatever their type and scaling."""


@dataclass(frozen=True)
class Volume:
    """A scalar image.

    Attributes
    ----------
    data:
        ``(I, J, K)`` float32, finite.
    affine:
        ``(4, 4)`` float64, voxel indices to millimetres in RAS+.
    header:
        The NIfTI header of the file, kept for writing back; None for computed images.
    """

    data: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        axes = self.affine[:3, :3]
        size_i, size_j, size_k = np.linalg.norm(axes, axis=0).tolist()
        return size_i, size_j, size_k

    def like(self, data: np.ndarray) -> Volume:
        """Other voxels on the same grid."""
        assert data.shape == self.data.shape, (data.shape, self.data.shape)
        return Volume(data, self.affine, self.header)


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI file as float32, slope and intercept applied.

    Raises
    ------
    DataError
        Unreadable or truncated file, not NIfTI, RGB or complex voxels, not 3-D (singleton trailing axes are dropped),
        fewer than 2 voxels along an axis, NaN or infinite voxels, a constant image, an affine that cannot be inverted,
        or voxels of no possible size.
    """
    volume = _read(path)
    check_voxels(volume.data, path)
    return volume


def read_mask(path: str | Path) -> Volume:
    """Read a brain mask, in which what is above 0.5 is brain.

    Raises
    ------
    DataError
        As :func:`read_volume`; if no voxel or every voxel is brain.
    """
    volume = _read(path)
    share = float((volume.data > 0.5).mean())
    if share in (0, 1):
        received = f"{path}: a brain mask with {'every' if share else 'no'} voxel inside"
        raise DataError(received, "the brain and nothing else", "Make it again, or leave it out to have one estimated.")
    check_voxels(volume.data, path)
    return volume


def _read(path: str | Path) -> Volume:
    """A volume whatever its voxels are. All that the header says is checked before its voxels take memory."""
    with open_nifti(path) as (header, source):
        header.voxel_type()
        affine = header.affine()
        check_geometry(header.shape, affine, path)
        check_length(header, source)
        _check_room(path, math.prod(header.shape), free_memory(), READING_BYTES_PER_VOXEL)
        data = read_voxels(header, source).reshape(header.shape[:3])
    return Volume(data, affine, header.as_nibabel)


def check_geometry(shape: tuple[int, ...], affine: np.ndarray | None, path: str | Path) -> None:
    """Raise DataError unless the image is 3-D with at least 2 voxels an axis and an invertible affine."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        is_series = len(shape) > 3
        remedy = "Split the series into volumes." if is_series else "Convert the whole volume, or leave this one out."
        raise DataError(f"{path}: {len(shape)}-D image of shape {tuple(shape)}", "one 3-D volume", remedy)
    if min(shape) < 2:
        received = f"{path}: shape {tuple(shape)}"
        raise DataError(received, "at least 2 voxels along each axis", "Leave single slices out.")
    if affine is None:
        affine = np.zeros((4, 4))
    axes = affine[:3, :3]
    origin = affine[:3, 3]
    with np.errstate(all="ignore"):  # a matrix of huge numbers is refused for its sizes
        sizes = np.linalg.norm(axes, axis=0)
        voxel_mm3 = abs(np.linalg.det(axes))
    if not np.isfinite(affine).all() or voxel_mm3 < 1e-9:
        received = f"{path}: singular affine"
        raise DataError(received, "an invertible voxel-to-world matrix", "Restore the sform or qform.")
    if sizes.min() < SMALLEST_MM or sizes.max() > LARGEST_MM:
        shown = " x ".join(f"{size:.4g}" for size in sizes)
        expected = f"{SMALLEST_MM:g} to {LARGEST_MM:g} mm"
        raise DataError(f"{path}: voxels of {shown} mm", expected, "Restore the voxel size: the unit is mm.")
    if np.abs(origin).max() > FARTHEST_MM:
        shown = ", ".join(f"{place:.4g}" for place in origin)
        expected = f"at most {FARTHEST_MM:g} mm from the origin"
        raise DataError(f"{path}: first voxel at {shown} mm", expected, "Restore the sform or qform.")


def check_memory(path: str | Path, free: int | None = None, bytes_per_voxel: int = BYTES_PER_VOXEL) -> None:
    """Raise DataError if preparing and harmonizing a file's voxels needs more than the memory that is free (bytes; by
    default asked for).

    Files that cannot be opened pass: :func:`read_volume` says what is wrong with them.
    """
    voxels = voxels_by_header(path)
    if free is None:
        free = free_memory()
    _check_room(path, voxels, free, bytes_per_voxel)


def _check_room(path: str | Path, voxels: int, free: int, bytes_per_voxel: int) -> None:
    """DataError where so many voxels need more than the ``free`` bytes."""
    need = bytes_per_voxel * voxels
    if need <= free:
        return
    gib = 2**30
    received = f"{path}: {voxels / 1e6:.0f} million voxels, about {need / gib:.1f} GiB to work on"
    expected = f"at most the {free / gib:.1f} GiB of memory that are free"
    raise DataError(received, expected, "Crop or resample it, end other work, or use a larger machine.")


def voxels_by_header(path: str | Path) -> int:
    """Voxels by the header; 0 where it cannot be read."""
    try:
        header = read_header(path)
    except DataError:
        return 0
    return math.prod(header.shape[:3])


class SharedMemory:
    """The memory that the threads of a process share: an image waits until those beside it leave enough.

    Each would find the same memory free otherwise, and all together would take it several times over.

    Parameters
    ----------
    processes:
        Processes like this one on the machine. Each may always have one image that fits; further ones share an equal
        part of what is free.
    """

    def __init__(self, processes: int = 1) -> None:
        self._changed = threading.Condition()
        self._held_bytes = 0
        self._processes = processes

    @contextlib.contextmanager
    def taken_by(self, path: str | Path) -> Iterator[None]:
        """Hold what harmonizing a file takes.

        Raises
        ------
        DataError
            If that is more than is free although no other image is there: see :func:`check_memory`.
        """
        need = BYTES_PER_VOXEL * voxels_by_header(path)

        def has_room() -> bool:
            share = free_memory() / self._processes
            return not self._held_bytes or self._held_bytes + need <= share

        with self._changed:
            self._changed.wait_for(has_room)
            check_memory(path)
            self._held_bytes += need
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= need
                self._changed.notify_all()


def check_voxels(data: np.ndarray, path: str | Path) -> None:
    """Raise DataError if any voxel is not finite or all are equal."""
    is_finite = np.isfinite(data)
    if not is_finite.all():
        received = f"{path}: {int((~is_finite).sum())} NaN or infinite voxels"
        raise DataError(received, "finite intensities", "Convert the image again or mask them.")
    if data.min() == data.max():
        received = f"{path}: constant image (every voxel {data.flat[0]:g})"
        raise DataError(received, "an image with contrast", "Check the conversion.")


def write_volume(volume: Volume, path: str | Path, dtype: type = np.float32) -> None:
    """Write NIfTI with the source's affine, sform/qform codes and units; whole or not at all.

    Raises
    ------
    DataError
        If a voxel is NaN or infinite, or would be in the file's type.
    OSError
        When the file cannot be written (permission, full disk); nothing is left behind then.
    """
    image = as_nifti(volume, dtype)
    if not (np.isfinite(volume.data).all() and np.isfinite(image.dataobj).all()):
        received = f"an image with NaN or infinite voxels, to be written to {path}"
        raise DataError(received, "finite intensities", "Nothing was written; look at the scan and the target.")
    with whole_file(path) as partial:
        if partial.suffix == ".gz":
            _save_packed(image, partial)
        else:
            nib.save(image, partial)


def _save_packed(image: nib.Nifti1Image, path: Path) -> None:
    """Write gzip by ISA-L, which takes a tenth of zlib's time. Without a name and a time in it the same image gives the
    same bytes."""
    with open(path, "wb") as file, IGzipFile("", "wb", fileobj=file, mtime=0) as packed:
        image.to_stream(packed)


def as_nifti(volume: Volume, dtype: type = np.float32) -> nib.Nifti1Image:
    """The volume as nibabel has it, with the source's sform/qform codes and units; what ``dtype`` cannot hold becomes
    infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        voxels: np.ndarray = volume.data.astype(dtype)
    header = volume.header.copy() if volume.header is not None else None
    if header is not None:
        header.set_data_dtype(dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        header["dim"][4:] = 1
    with np.errstate(over="ignore"):  # fields of a NIfTI-2 header that no one reads may not fit into a NIfTI-1 one
        image = nib.Nifti1Image(voxels, volume.affine, header)
    if header is None:
        image.header.set_xyzt_units("mm")
    return image
