"""Compressed files: the content decides, damage is noticed up to the checksum, and reading takes bounded resources."""

from __future__ import annotations

import gzip
import io
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from mmh_ray.imaging.unpacking import open_unpacked
from tests.imaging.nifti_files import put

pytestmark = pytest.mark.fast

BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty member that ends a file of bgzip."""


@pytest.fixture
def content(rng: np.random.Generator) -> bytes:
    """Some bytes that compress badly, and some that compress well."""
    return rng.bytes(300_000) + bytes(3_000_000) + rng.bytes(1000)


def unpack(path: Path) -> bytes:
    """All bytes of a file."""
    with open_unpacked(path) as source:
        return source.stream.read()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_the_content_decides_not_the_name(tmp_path: Path, content: bytes, name: str) -> None:
    assert unpack(put(tmp_path / name, content)) == content
    assert unpack(put(tmp_path / name, gzip.compress(content))) == content


@pytest.mark.parametrize("level", [0, 1, 9])
def test_reading_in_pieces_gives_the_same(tmp_path: Path, content: bytes, level: int) -> None:
    path = put(tmp_path / "a.gz", gzip.compress(content, level))
    read = io.BytesIO()
    with open_unpacked(path) as source:
        assert source.packed
        assert source.size == path.stat().st_size
        piece = bytearray(70_001)
        while count := source.stream.readinto(piece):
            read.write(piece[:count])
    assert read.getvalue() == content


@pytest.mark.parametrize("end", [b"", BGZIP_END, bytes(20), bytes(512_000), BGZIP_END + bytes(512)])
def test_several_members_and_padding_are_one_file(tmp_path: Path, content: bytes, end: bytes) -> None:
    parts = [content[at : at + 65_280] for at in range(0, len(content), 65_280)]  # as bgzip does
    assert unpack(put(tmp_path / "a.gz", b"".join(map(gzip.compress, parts)) + end)) == content
    assert unpack(put(tmp_path / "a.gz", gzip.compress(content) + end)) == content


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """Also within the checksum and the length at the end, where all data have been read."""
    whole = gzip.compress(b"some voxels" * 20)
    for length in range(2, len(whole)):
        with pytest.raises(EOFError, match="end early"):
            unpack(put(tmp_path / "a.gz", whole[:length]))
        with pytest.raises(EOFError, match="end early"):
            unpack(put(tmp_path / "a.gz", whole + whole[:length]))


@pytest.mark.parametrize("place", [-1, -4, -5, -8])
def test_a_wrong_checksum_or_length_is_noticed(tmp_path: Path, place: int) -> None:
    whole = bytearray(gzip.compress(b"some voxels" * 20))
    whole[place] ^= 1
    with pytest.raises(zlib.error, match="Incorrect"):
        unpack(put(tmp_path / "a.gz", bytes(whole)))


def test_trailing_bytes_that_are_not_gzip_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(zlib.error, match="compressed data are followed by something that is not gzip"):
        unpack(put(tmp_path / "a.gz", gzip.compress(b"some voxels") + b"junk"))


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"") * 200_000,
        gzip.compress(b"data") + gzip.compress(b"") * 200_000,
        b"".join(gzip.compress(bytes([number])) for number in range(256)) * 400,
        b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"name" * 2**20,
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\0\0\0\xff\xff" * 2**20,
        gzip.compress(b"data") + bytes(4 * 2**20),
    ],
    ids=["empty members", "empty members after one", "members of a byte", "long name", "empty blocks", "zeros"],
)
def test_a_file_that_contains_almost_no_data_is_not_read_to_its_end(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "a.gz", content)
    start = time.process_time()
    with pytest.raises(zlib.error, match="almost no data"):
        unpack(path)
    assert time.process_time() - start < 3


def test_the_largest_possible_content_is_known_before_reading(tmp_path: Path) -> None:
    count = 2**24
    with open_unpacked(put(tmp_path / "a.gz", gzip.compress(bytes(count)))) as source:
        assert source.can_hold(count)  # nothing packs better than zeros
        assert not source.can_hold(2 * count)
    with open_unpacked(put(tmp_path / "a", bytes(100))) as source:
        assert source.can_hold(100)
        assert not source.can_hold(101)
