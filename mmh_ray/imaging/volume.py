"""Reads, checks and writes 3-D images; keeps their geometry and header."""

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
"""Largest distance from the origin; no scanner is larger, and coordinates beyond lose precision."""
BYTES_PER_VOXEL = 100
"""Generous bound on the memory for preparing and harmonizing a scan, per voxel of its own grid.

77 were measured at 192 voxels per axis (521 MiB, of which 159 MiB are also used at 64:
`python benchmarks/memory.py --scan 64 192`).
"""
READING_BYTES_PER_VOXEL = 8
"""Bound on the memory for only reading it; 5.2 were measured at 256 x 256 x 170 voxels for all types and scalings."""


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
        The file's NIfTI header, kept for writing; None for computed images.
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
        """A volume with other voxels on the same grid."""
        assert data.shape == self.data.shape, (data.shape, self.data.shape)
        return Volume(data, self.affine, self.header)


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI file as float32, slope and intercept applied.

    Raises
    ------
    DataError
        Unreadable or truncated file, not NIfTI, RGB or complex voxels, not 3-D (singleton trailing axes are dropped),
        fewer than 2 voxels along an axis, NaN or infinite voxels, a constant image, an affine that cannot be inverted,
        or an impossible voxel size.
    """
    volume = _read(path)
    check_voxels(volume.data, path)
    return volume


def read_mask(path: str | Path) -> Volume:
    """Read a brain mask; voxels above 0.5 are brain.

    Raises
    ------
    DataError
        As :func:`read_volume`; if no voxel or every voxel is brain.
    """
    volume = _read(path)
    share = float((volume.data > 0.5).mean())
    if share in (0, 1):
        received = f"{path}: a brain mask with {'every' if share else 'no'} voxel inside"
        remedy = "Create it again, or leave it out to have one estimated."
        raise DataError(received, "the brain and nothing else", remedy)
    check_voxels(volume.data, path)
    return volume


def _read(path: str | Path) -> Volume:
    """Read a volume without checking its voxels. The header is checked before memory is allocated for the voxels."""
    with open_nifti(path) as (header, source):
        header.voxel_type()
        affine = header.affine()
        check_geometry(header.shape, affine, path)
        check_length(header, source)
        _check_room(path, math.prod(header.shape), READING_BYTES_PER_VOXEL)
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
    with np.errstate(all="ignore"):  # huge numbers may overflow; their sizes are refused below
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


def check_memory(path: str | Path, bytes_per_voxel: int = BYTES_PER_VOXEL) -> None:
    """Raise DataError if a file needs more than the free memory; by default, to be prepared and harmonized.

    Files that cannot be opened pass: :func:`read_volume` reports what is wrong with them.
    """
    _check_room(path, voxels_by_header(path), bytes_per_voxel)


def _check_room(path: str | Path, voxels: int, bytes_per_voxel: int) -> None:
    """Raise DataError if the voxels need more than the free memory."""
    need = bytes_per_voxel * voxels
    free = free_memory()
    if need <= free:
        return
    gib = 2**30
    received = f"{path}: {voxels / 1e6:.0f} million voxels, about {need / gib:.1f} GiB to work on"
    expected = f"at most the {free / gib:.1f} GiB of free memory"
    raise DataError(received, expected, "Crop or resample it, end other work, or use a larger machine.")


def voxels_by_header(path: str | Path) -> int:
    """Number of voxels according to the header; 0 if it cannot be read."""
    try:
        header = read_header(path)
    except DataError:
        return 0
    return math.prod(header.shape[:3])


class SharedMemory:
    """Shares memory among the threads of a process: an image waits until the other threads leave enough.

    Without it, each thread would count the same free memory as its own.

    Parameters
    ----------
    processes:
        Number of such processes on the machine. Each may always process one image that fits, and further images within
        its equal part of the free memory.
    """

    def __init__(self, processes: int = 1) -> None:
        self._changed = threading.Condition()
        self._held_bytes = 0
        self._processes = processes

    @contextlib.contextmanager
    def taken_by(self, path: str | Path) -> Iterator[None]:
        """Reserve the memory for harmonizing a file; waits until it is available.

        Raises
        ------
        DataError
            If it needs more than the free memory although no other image is being processed: :func:`check_memory`.
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
        If the file cannot be written (permission, full disk); nothing is left behind.
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
    """Write gzip with ISA-L, which takes a tenth of zlib's time.

    No name and no time are stored, so the same image gives the same bytes.
    """
    with open(path, "wb") as file, IGzipFile("", "wb", fileobj=file, mtime=0) as packed:
        image.to_stream(packed)


def as_nifti(volume: Volume, dtype: type = np.float32) -> nib.Nifti1Image:
    """Convert to a nibabel image with the source's sform/qform codes and units.

    Voxels that ``dtype`` cannot represent become infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        voxels: np.ndarray = volume.data.astype(dtype)
    header = volume.header.copy() if volume.header is not None else None
    if header is not None:
        header.set_data_dtype(dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        header["dim"][4:] = 1
    with np.errstate(over="ignore"):  # unused fields of a NIfTI-2 header may not fit into a NIfTI-1 one
        image = nib.Nifti1Image(voxels, volume.affine, header)
    if header is None:
        image.header.set_xyzt_units("mm")
    return image
