"""Files of other formats under a NIfTI name: the reason names the format."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.errors import DataError
from mmh_ray.imaging.volume import read_volume
from tests.imaging.nifti_files import nifti, put, voxels

pytestmark = pytest.mark.fast

MGH = nib.MGHImage(voxels(dtype="<f4"), np.eye(4)).to_bytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (MGH, "a FreeSurfer MGHImage; expected a NIfTI-1 or NIfTI-2 file. Convert"),
        (bytes(128) + b"DICM" + bytes(400), "a DICOM file; .* Convert"),
        (b"NRRD0005\n# a comment\n", "an NRRD file; .* Convert"),
        (b"\x89HDF\r\n\x1a\n" + bytes(400), "HDF5 file; .* Convert"),
        (bz2.compress(nifti()), "a bzip2 file; .* Unpack"),
        (lzma.compress(nifti()), "an xz file; .* Unpack"),
        (b"PK\x03\x04" + bytes(400), "a zip file; .* Unpack"),
        (b"/annex/objects/MD5E-s100--0123.nii.gz\n", "a git-annex pointer; .* Fetch its content"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer; .* Fetch its content"),
        (b"<!DOCTYPE html><title>404</title>", "a text in HTML or XML; .* Download"),
    ],
    ids=["mgh", "dicom", "nrrd", "hdf5", "bzip2", "xz", "zip", "annex", "lfs", "html"],
)
def test_the_format_is_named(tmp_path: Path, content: bytes, words: str, packed: bool) -> None:
    path = put(tmp_path / "a.nii.gz", gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=words):
        read_volume(path)


def test_a_file_that_was_compressed_twice_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.nii.gz", gzip.compress(gzip.compress(nifti())))
    with pytest.raises(DataError, match=r"gzip inside gzip; .* Unpack it"):
        read_volume(path)
