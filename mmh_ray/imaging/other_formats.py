"""Recognises files that are not NIfTI by their first bytes, so that the error can name the format and the remedy."""

from __future__ import annotations

from pathlib import Path

from mmh_ray.errors import DataError

_CONVERT = "Convert it, for example with dcm2niix or mri_convert."
_FETCH = "Fetch its content (datalad get, git annex get or git lfs pull)."
_UNPACK = "Unpack it, and pack it once with gzip if at all."

_BEGINNINGS = (
    (0, b"\x00\x00\x00\x01", "a FreeSurfer MGHImage", _CONVERT),
    (128, b"DICM", "a DICOM file", _CONVERT),
    (0, b"NRRD", "an NRRD file", _CONVERT),
    (0, b"ObjectType", "a MetaImage", _CONVERT),
    (0, b"CDF", "a MINC-1 file", _CONVERT),
    (0, b"\x89HDF", "a MINC-2 or other HDF5 file", _CONVERT),
    (0, b"\x1f\x8b", "gzip inside gzip", _UNPACK),
    (0, b"BZh", "a bzip2 file", _UNPACK),
    (0, b"\xfd7zXZ", "an xz file", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (0, b"PK\x03\x04", "a zip file", _UNPACK),
    (0, b"/annex/objects/", "a git-annex pointer", _FETCH),
    (0, b"version https://git-lfs", "a Git LFS pointer", _FETCH),
    (0, b"<", "a text in HTML or XML", "Download the image itself."),
)
"""Offset of a format's magic bytes, the bytes, what the error calls the file, and the remedy."""


def refuse_other_format(block: bytes, path: str | Path) -> None:
    """Raise DataError if a file begins like one of :data:`_BEGINNINGS`."""
    for place, mark, what, remedy in _BEGINNINGS:
        if block[place:].startswith(mark):
            raise DataError(f"{path}: {what}", "a NIfTI-1 or NIfTI-2 file", remedy)
