"""NIfTI files from strangers: headers, extensions, packed streams."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import pytest
from hypothesis import strategies as st

from mmh_ray.distributed.manifest import probe
from mmh_ray.imaging.volume import check_memory, read_mask, read_volume
from tests.fuzz.conftest import Guard
from tests.fuzz.mutations import Edit, Spot, byte_edits, edited, fuzz, renumbered, spot_edits
from tests.imaging.nifti_files import extension, nifti, voxels

pytestmark = pytest.mark.slow


def spots_of(kind: type[nib.Nifti1Header], order: str) -> Iterator[Spot]:
    """Every number of a header."""
    layout = kind.template_dtype.newbyteorder(order)
    assert layout.fields is not None
    for field_type, start, *_ in layout.fields.values():
        if field_type.base.kind not in "iuf":
            continue
        size = field_type.base.itemsize
        for at in range(start, start + field_type.itemsize, size):
            yield Spot(at, field_type.base)


def cases() -> Iterator[tuple[bytes, list[Spot]]]:
    """Valid files of both versions and byte orders, with and without extensions, and where their numbers stand."""
    for version, kind in ((1, nib.Nifti1Header), (2, nib.Nifti2Header)):
        for order in "<>":
            spots = list(spots_of(kind, order))
            data = voxels((4, 5, 6), f"{order}i2")
            more = extension(b"a note", order=order) + extension(b"more", order=order)
            end = kind.sizeof_hdr + 4
            heads = [Spot(end + at, np.dtype(f"{order}i4")) for at in (0, 4, 16, 20)]
            yield nifti(data, version), spots
            yield nifti(data, version, more), spots + heads
            yield nifti((data > 50).astype(f"{order}f4"), version), spots


CASES = list(cases())
which = st.integers(0, len(CASES) - 1)


def read_all(guard: Guard, content: bytes) -> None:
    """Every way in which the product opens an image."""
    path = guard.folder / "scan.nii.gz"
    path.write_bytes(content)
    guard(
        lambda: read_volume(path), lambda: read_mask(path), lambda: check_memory(path), lambda: check_probe(str(path))
    )


def check_probe(uri: str) -> None:
    """What becomes of the file in the manifest: facts, or a reason that is not an accident of the program's."""
    row = probe(uri)
    assert row["status"] == "ok" or "expected no error" not in row["reason"], row["reason"]


@fuzz(case=which, numbers=spot_edits(), edits=byte_edits())
def test_headers(guard: Guard, case: int, numbers: list[Edit], edits: list[Edit]) -> None:
    content, spots = CASES[case]
    read_all(guard, edited(renumbered(content, numbers, spots), edits))


MEMBER = gzip.compress(b"", mtime=0)


@fuzz(
    case=which,
    numbers=spot_edits(),
    edits=byte_edits(),
    packed_edits=byte_edits((MEMBER, MEMBER * 1000, gzip.compress(b"\0" * 10**6, mtime=0), b"\0" * 5000)),
)
def test_packed_streams(
    guard: Guard, case: int, numbers: list[Edit], edits: list[Edit], packed_edits: list[Edit]
) -> None:
    content, spots = CASES[case]
    plain = edited(renumbered(content, numbers, spots), edits)
    read_all(guard, edited(gzip.compress(plain, 1, mtime=0), packed_edits))
