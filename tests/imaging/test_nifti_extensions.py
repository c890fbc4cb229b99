"""Header extensions are kept and written back if they fit before the voxels, refused if not, and always bounded."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.errors import DataError
from mmh_ray.imaging.volume import read_volume, write_volume
from tests.imaging.nifti_files import extension, nifti, put, voxels

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("version", "size"), [(1, 352), (2, 544)])
@pytest.mark.parametrize("rest", [b"", bytes(16), bytes(700), b"\0" * 7 + b"x"])
def test_extensions_survive_reading_and_writing(
    tmp_path: Path, version: int, size: int, order: str, rest: bytes
) -> None:
    """Zeros, or less than an extension takes, may follow them."""
    area = extension(b"<a>" * 50, 4, order) + extension(b"protocol", 99, order) + rest
    path = put(tmp_path / "a.nii", nifti(voxels(dtype=f"{order}i2"), version, area, vox_offset=size + len(area)))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, voxels())
    write_volume(volume, tmp_path / "b.nii.gz")
    written = nib.load(tmp_path / "b.nii.gz")
    assert [(found.get_code(), found.content) for found in written.header.extensions] == [
        (4, b"<a>" * 50),
        (99, b"protocol"),
    ]
    np.testing.assert_array_equal(written.get_fdata(), voxels())


@pytest.mark.parametrize(
    ("area", "words"),
    [
        (extension(bytes(800))[:400], "header extension of 816 bytes where 400 are left"),
        (extension(b"a") + np.array([-32, 6], "<i4").tobytes() + bytes(8), "header extension of -32 bytes"),
        (np.array([8, 6], "<i4").tobytes() + bytes(24), "header extension of 8 bytes"),
        (extension(b"a") + bytes(8) + b"x" * 40, "unknown bytes between the header's extensions and the voxels"),
        (extension(b"") * 1001, "1000 header extensions or more"),
    ],
    ids=["cut by the offset", "negative", "smaller than its head", "junk", "many"],
)
def test_extensions_that_contradict_the_offset_are_refused(tmp_path: Path, area: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"{words}.*; expected header extensions that end at byte \d+, where"):
        read_volume(put(tmp_path / "a.nii", nifti(extensions=area)))


@pytest.mark.parametrize("packed", [False, True])
def test_an_extension_beyond_the_offset_is_not_read_as_voxels(tmp_path: Path, packed: bool) -> None:
    """Otherwise the image would be shifted by the size of the extension; its last voxels are air here."""
    data = voxels()
    data[:, :, -3:] = 0
    content = nifti(data, extensions=extension(b"a" * 90), vox_offset=352)
    with pytest.raises(DataError, match="header extensions that vox_offset 352 leaves no room for"):
        read_volume(put(tmp_path / "a.nii.gz", gzip.compress(content) if packed else content))


def test_declared_but_missing_extensions_are_accepted(tmp_path: Path) -> None:
    content = bytearray(nifti())
    content[348] = 1
    np.testing.assert_array_equal(read_volume(put(tmp_path / "a.nii", bytes(content))).data, voxels())


def test_millions_of_extensions_take_no_time(tmp_path: Path) -> None:
    path = put(tmp_path / "a.nii.gz", gzip.compress(nifti(extensions=extension(b"") * 500_000), 1))
    start = time.process_time()
    with pytest.raises(DataError, match="1000 header extensions or more"):
        read_volume(path)
    assert time.process_time() - start < 3
