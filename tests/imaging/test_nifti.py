"""Voxels are read as the header declares, in bounded time and memory, even from hostile files."""

from __future__ import annotations

import gzip
import os
import socket
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.errors import DataError
from mmh_ray.imaging.volume import SharedMemory, check_memory, read_mask, read_volume, write_volume
from tests.imaging.nifti_files import AFFINE, extension, nifti, put, voxels

pytestmark = pytest.mark.fast

MIB = 2**20
LITTLE = 8 * MIB
"""Bytes that a file of a few thousand voxels may take, whatever it claims."""


@contextmanager
def bounded(seconds: float, most: int) -> Iterator[None]:
    """The block takes no longer and no more memory at its peak."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert time.process_time() - start < seconds
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


ODD = np.array([0, -1, 2, 255, -32768, 2**31 - 1, np.nan, np.inf, -1e38, 1e38, 1e300, 351, 352.5, 1e6])
"""Numbers for a field of a header."""


def zeros_after(content: bytes, count: int, path: Path) -> Path:
    """A packed file of some content and many zeros, written in pieces."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    with path.open("wb") as stream:
        stream.write(packer.compress(content))
        for _ in range(count // MIB):
            stream.write(packer.compress(bytes(MIB)))
        stream.write(packer.flush())
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_content_decides_whether_a_file_is_compressed(tmp_path: Path, name: str, packed: bool) -> None:
    """Archives have packed files without `.gz` and plain ones with it."""
    path = put(tmp_path / name, gzip.compress(nifti()) if packed else nifti())
    np.testing.assert_array_equal(read_volume(path).data, voxels())
    np.testing.assert_allclose(read_volume(path).affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("read", [read_volume, read_mask])
def test_a_gzip_bomb_after_the_voxels_is_not_decompressed(tmp_path: Path, read: Any) -> None:
    path = zeros_after(nifti(), 64 * MIB, tmp_path / "a.nii.gz")
    with bounded(3, LITTLE), pytest.raises(DataError, match="more than 16384 bytes after the voxels; expected"):
        read(path)


def test_a_gzip_bomb_of_many_members_is_not_decompressed(tmp_path: Path) -> None:
    path = put(tmp_path / "a.nii.gz", gzip.compress(nifti()) + gzip.compress(bytes(MIB)) * 200)
    with bounded(3, LITTLE), pytest.raises(DataError, match="more than 16384 bytes after the voxels; expected"):
        read_volume(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("version", "shape"), [(1, (1400, 1400, 1400)), (1, (32767,) * 3), (2, (2**40,) * 3), (2, (2**62,) * 3)]
)
def test_the_declared_size_is_checked_before_memory_is_allocated(
    tmp_path: Path, version: int, shape: tuple[int, ...], packed: bool
) -> None:
    content = nifti(version=version, dim=dict(enumerate(shape, 1)))
    path = put(tmp_path / "a.nii", gzip.compress(content) if packed else content)
    for read in (read_volume, read_mask):
        with bounded(3, LITTLE), pytest.raises(DataError, match=r"unreadable \(\d+ bytes on disk, where its header"):
            read(path)


def test_a_declared_size_that_the_file_could_hold_is_compared_with_the_free_memory(tmp_path: Path) -> None:
    """Zeros pack a thousandfold: a few megabytes may be an image of terabytes."""
    path = tmp_path / "a.nii.gz"
    zeros_after(nifti(dim={1: 2**14, 2: 2**14, 3: 2**14}), 2 * MIB, path)
    os.truncate(path, 2**34)  # sparse
    with bounded(3, LITTLE), pytest.raises(DataError, match="GiB of free memory"):
        read_mask(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("after", [b"", b"\0", bytes(512), bytes(16 * 1024)])
def test_padding_after_the_voxels_is_accepted(tmp_path: Path, after: bytes, packed: bool) -> None:
    content = nifti(after=after)
    path = put(tmp_path / "a.nii.gz", gzip.compress(content) if packed else content)
    np.testing.assert_array_equal(read_volume(path).data, voxels())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fields", [{"dim": {1: 8}}, {"dim": {3: 10}}, {"datatype": 2, "bitpix": 8}, {"dim": {0: 2}}])
def test_a_header_that_declares_less_than_the_file_holds_is_refused(
    tmp_path: Path, fields: dict[str, Any], packed: bool
) -> None:
    """Otherwise rows would be shifted, the last slice lost, or each byte read as a voxel."""
    content = nifti(**fields)
    with pytest.raises(DataError, match=r"bytes after the voxels that are not padding|2-D"):
        read_volume(put(tmp_path / "a.nii", gzip.compress(content) if packed else content))


@pytest.mark.parametrize(
    ("dtype", "scaling"), [("<i2", (1, 0)), ("<i2", (0.5, 3)), (">f8", (0.5, 3)), ("<f4", (2, 0)), ("<i8", (1, 0))]
)
def test_an_image_is_in_memory_only_once(tmp_path: Path, dtype: str, scaling: tuple[float, float]) -> None:
    data = voxels((128, 128, 100), dtype)
    path = put(tmp_path / "a.nii.gz", gzip.compress(nifti(data, scl_slope=scaling[0], scl_inter=scaling[1]), 1))
    expected = data.astype(np.float64) * scaling[0] + scaling[1]
    with bounded(10, 6 * data.size + LITTLE // 2):
        found = read_volume(path)
    np.testing.assert_array_equal(found.data, expected.astype(np.float32))
    np.testing.assert_array_equal(found.data, np.asarray(nib.load(path).dataobj, dtype=np.float32))


def special(path: Path, kind: str) -> Path:
    """Something that is not a regular file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    else:
        path.symlink_to({"zeros": "/dev/zero", "terminal": "/dev/tty", "loop": path.name, "nothing": "absent"}[kind])
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "link to a pipe", "zeros", "terminal", "loop", "nothing"])
def test_special_files_are_refused_at_once(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = special(tmp_path / name, kind)
    for read in (read_volume, read_mask):
        with bounded(3, LITTLE), pytest.raises(DataError, match=rf"{name}: .+; expected .+\. [A-Z].+\."):
            read(path)
    monkeypatch.setattr("mmh_ray.imaging.volume.free_memory", lambda: 0)
    with bounded(3, LITTLE), SharedMemory().taken_by(path):
        check_memory(path)


def _damaged(content: bytearray, version: int, way: str, rng: np.random.Generator) -> bytearray:
    """One kind of damage done to a file."""
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    size = kind.sizeof_hdr
    if way == "bytes":
        for place in rng.integers(0, size, 3):
            content[place] = rng.integers(256)
    elif way == "field":
        layout = kind.template_dtype
        field, start = layout.fields[str(rng.choice(layout.names))][:2]
        if field.base.kind in "iuf":
            with np.errstate(all="ignore"):
                value = np.full(field.shape, rng.choice(ODD)).astype(field.base)
            content[start : start + field.itemsize] = value.tobytes()
    elif way == "cut":
        content = content[: rng.integers(len(content))]
    else:
        content[size] = 1  # declares extensions
        place = int(rng.integers(size, size + 40))
        content[place : place + 4] = rng.bytes(4)
    return content


def mutants(rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """Damaged files of both versions and byte orders, with and without extensions, compressed or not.

    Some are damaged after compression.
    """
    for number in range(count):
        version = 1 + number % 2
        order = "<>"[number // 2 % 2]
        data = voxels(dtype=order + str(rng.choice(["i2", "u1", "f4", "f8"])))
        area = extension(rng.bytes(20), order=order) if number % 3 == 0 and data.itemsize > 1 else b""
        way = ("bytes", "field", "field", "cut", "extension")[number % 5]
        whole = bytearray(nifti(data, version, area, sform_code=int(rng.integers(2))))
        content = _damaged(whole, version, way, rng)
        spoilt = number % 7
        if spoilt < 3:
            content = bytearray(gzip.compress(content, 1))
            for place in rng.integers(0, len(content), spoilt):
                content[place] = rng.integers(256)
        yield f"{number} {way}", bytes(content)


@pytest.mark.slow
def test_mutants_are_refused_or_read_and_written_whole(tmp_path: Path, rng: np.random.Generator) -> None:
    """No other error is raised, and no file takes much time or memory. Warnings are errors here."""
    path = tmp_path / "a.nii.gz"
    refusals: list[str] = []
    read = 0
    for what, content in mutants(rng, 400):
        path.write_bytes(content)
        with bounded(3, LITTLE):
            try:
                check_memory(path)
                found = read_volume(path)
            except DataError as error:
                refusals.append(str(error))
                continue
        assert found.data.ndim == 3, what
        assert np.isfinite(found.data).all(), what
        assert np.isfinite(found.affine).all(), what
        read += 1
        if read % 8 == 0:  # writing takes longer
            write_volume(found, tmp_path / "b.nii")
            again = read_volume(tmp_path / "b.nii")
            np.testing.assert_array_equal(again.data, found.data, err_msg=what)
            np.testing.assert_allclose(again.affine, found.affine, rtol=1e-6, atol=1e-6, err_msg=what)
    assert all(refusal.startswith(str(path)) for refusal in refusals)
    assert min(read, len(refusals)) > 100
