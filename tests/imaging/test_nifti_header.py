"""Untrusted headers: impossible values are refused with a reason, values that other programs write are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmh_ray.errors import DataError
from mmh_ray.imaging.volume import check_memory, read_mask, read_volume
from tests.imaging.nifti_files import AFFINE, SHAPE, SIZES, nifti, put, voxels

pytestmark = pytest.mark.fast

NO_SFORM = {"sform_code": 0}
NO_QFORM = {"qform_code": 0}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("version", "offset"),
    [
        *((1, offset) for offset in (0, 1, 176, 348, 351, -352, 352.5, 1e5, 2e7, 1e9, 1e30, np.nan, np.inf, -np.inf)),
        *((2, offset) for offset in (0, 352, 540, 543, -1, 10**5, 10**9, 2**62)),
    ],
)
def test_voxels_do_not_begin_in_the_header_or_beyond_the_file(
    tmp_path: Path, version: int, offset: float, order: str
) -> None:
    content = nifti(voxels(dtype=f"{order}i2"), version, vox_offset=offset)
    with pytest.raises(DataError, match=r"unreadable \((vox_offset|\d+ bytes on disk)"):
        read_volume(put(tmp_path / "a.nii", content))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("off_by", [-2, -16, 2, 16])
def test_an_offset_that_is_off_shows_in_the_length(tmp_path: Path, version: int, off_by: int) -> None:
    """Even where there is room before the voxels: the image would be a few columns off."""
    first = 352 if version == 1 else 544
    room = bytes(32)
    content = bytearray(nifti(version=version, extensions=room, vox_offset=first + len(room) + off_by))
    content[first - 4] = 0  # no extension, only room
    with pytest.raises(DataError, match=r"after the voxels|declares"):
        read_volume(put(tmp_path / "a.nii", bytes(content)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_number_is_read_in_both_byte_orders(tmp_path: Path, version: int, dtype: str, order: str) -> None:
    stored = voxels(dtype=f"{order}{dtype}")
    found = read_volume(put(tmp_path / "a.nii", nifti(stored, version)))
    np.testing.assert_array_equal(found.data, stored)
    np.testing.assert_allclose(found.affine, AFFINE, rtol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "dim",
    [
        {0: 4, 4: 0},
        {0: 5, 4: 1, 5: 0},
        {3: 0},
        {1: 0, 2: 0, 3: 0},
        {2: -10},
        {1: -1},
        {0: 4, 4: -1},
        {0: 7, 7: -32768},
    ],
    ids=str,
)
def test_an_axis_without_voxels_is_not_reported_as_a_series(
    tmp_path: Path, version: int, dim: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "a.nii", nifti(version=version, dim=dim))
    for read in (read_volume, read_mask):
        with pytest.raises(DataError, match=r"shape \(.*\), with an axis of .*; expected one voxel or more") as error:
            read(path)
        assert "Split" not in str(error.value)
    monkeypatch.setattr("mmh_ray.imaging.volume.free_memory", lambda: 0)
    check_memory(path)  # leaves unreadable files to `read_volume`


@pytest.mark.parametrize("axes", [0, -1, 8, 32767])
def test_only_one_to_seven_axes_are_possible(tmp_path: Path, axes: int) -> None:
    with pytest.raises(DataError, match=r"axes \(dim\[0\]\)"):
        read_volume(put(tmp_path / "a.nii", nifti(dim={0: axes})))


def test_sizes_of_axes_beyond_the_dimension_are_ignored(tmp_path: Path) -> None:
    path = put(tmp_path / "a.nii", nifti(dim={4: 0, 5: -3, 6: 0, 7: 500}))
    np.testing.assert_array_equal(read_volume(path).data, voxels())


@pytest.mark.parametrize(
    ("shape", "remedy"), [((9, 10, 11, 2), "Split the series"), ((9, 110), "Convert the whole"), ((990,), "Convert")]
)
def test_the_remedy_depends_on_the_shape(tmp_path: Path, shape: tuple[int, ...], remedy: str) -> None:
    with pytest.raises(DataError, match=rf"{len(shape)}-D image of shape .*; expected one 3-D volume\. {remedy}"):
        read_volume(put(tmp_path / "a.nii", nifti(voxels(shape))))


@pytest.mark.parametrize("code", [0, 1, 7, -1, 32, 128, 255, 1536, 1792, 2048, 2304, 32767])
def test_voxels_that_are_not_single_numbers_are_refused(tmp_path: Path, code: int) -> None:
    with pytest.raises(DataError, match=r"voxels of type .+; expected one number per voxel"):
        read_volume(put(tmp_path / "a.nii", nifti(datatype=code)))


@pytest.mark.parametrize("slope", [0, np.nan, -0.0])
def test_no_slope_means_stored_numbers(tmp_path: Path, slope: float) -> None:
    path = put(tmp_path / "a.nii", nifti(scl_slope=slope, scl_inter=np.nan))
    np.testing.assert_array_equal(read_volume(path).data, voxels())


@pytest.mark.parametrize("scaling", [(np.inf, 0), (-np.inf, 0), (1, np.nan), (2, np.inf), (1, -np.inf)])
def test_scaling_that_is_not_finite_is_refused(tmp_path: Path, scaling: tuple[float, float]) -> None:
    path = put(tmp_path / "a.nii", nifti(scl_slope=scaling[0], scl_inter=scaling[1]))
    with pytest.raises(DataError, match=r"scl_slope .+ and scl_inter .+; expected finite numbers"):
        read_volume(path)


@pytest.mark.parametrize(
    ("version", "scaling", "dtype"),
    [(1, (3e38, 0), "<i2"), (2, (1e300, 0), "<i2"), (2, (1, -1e200), "<u1"), (2, (1e308, 0), "<f8")],
)
def test_scaling_beyond_32_bits_says_so(tmp_path: Path, version: int, scaling: tuple[float, float], dtype: str) -> None:
    content = nifti(voxels(dtype=dtype), version, scl_slope=scaling[0], scl_inter=scaling[1])
    with pytest.raises(DataError, match=r"voxels beyond 3\.4e38 \(scl_slope .+\. Restore the slope"):
        read_volume(put(tmp_path / "a.nii", content))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sform_code": 9}, "sform_code 9 and qform_code 1; expected 0 to 5"),
        ({"qform_code": -3}, "sform_code 1 and qform_code -3; expected 0 to 5"),
        ({"pixdim": {1: np.nan}}, r"pixdim.*; expected 0\.02 to 30 mm"),
        ({"pixdim": {3: np.inf}}, r"pixdim.*; expected 0\.02 to 30 mm"),
        (NO_SFORM | {"pixdim": {3: 0}}, r"pixdim.*; expected 0\.02 to 30 mm"),
        (NO_SFORM | NO_QFORM | {"pixdim": {1: 0}}, r"pixdim.*; expected 0\.02 to 30 mm"),
        (NO_SFORM | {"pixdim": {1: 1e30}}, r"mm; expected 0\.02 to 30 mm"),
        (NO_SFORM | {"pixdim": {0: 7}}, r"pixdim\[0\] 7 with a qform; expected 1 or -1"),
        (NO_SFORM | {"pixdim": {0: np.nan}}, r"pixdim\[0\] nan with a qform; expected 1 or -1"),
        (NO_SFORM | {"quatern_b": 1.5}, "qform that is not a rotation"),
        (NO_SFORM | {"quatern_c": 1e38}, "qform that is not a rotation"),
        (NO_SFORM | {"quatern_d": np.nan}, "singular affine|qform that is not a rotation"),
        (NO_SFORM | {"qoffset_x": np.inf}, "singular affine"),
        (NO_SFORM | {"qoffset_x": 1e30}, "mm from the origin"),
        ({"srow_x": {3: -1e30}}, "mm from the origin"),
        ({"srow_x": {0: 1e30}}, r"expected 0\.02 to 30 mm"),
        ({"srow_x": {0: 0}}, "singular affine"),
        ({"srow_y": {1: np.nan}}, "singular affine"),
    ],
    ids=str,
)
def test_geometry_that_is_damaged_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_volume(put(tmp_path / "a.nii", nifti(**fields)))


@pytest.mark.parametrize("size", [1e200, np.inf])
def test_an_affine_that_overflows_is_refused(tmp_path: Path, size: float) -> None:
    content = nifti(version=2, srow_x={0: size}, srow_y={1: -size})
    with pytest.raises(DataError, match=r"singular affine|to 30 mm"):
        read_volume(put(tmp_path / "a.nii", content))


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": {1: 0, 2: 0, 3: 0}},  # the sform has the sizes
        {"pixdim": {4: 0, 5: np.nan}},
        {"pixdim": {0: 0}},
        NO_SFORM | {"pixdim": {0: 0}},  # 0 is 1, says the standard
        NO_SFORM,
        NO_QFORM,
        {"quatern_b": 5},  # the qform is ignored if there is an sform
        {"bitpix": 0},
        {"intent_code": 32000, "slice_code": 77, "dim_info": 255, "descrip": b"\xff" * 80},
        {"toffset": np.nan, "cal_max": np.inf, "slice_duration": -np.inf},
    ],
    ids=str,
)
def test_what_other_programs_write_is_read(tmp_path: Path, fields: dict[str, Any]) -> None:
    found = read_volume(put(tmp_path / "a.nii", nifti(**fields)))
    np.testing.assert_array_equal(found.data, voxels())
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-6)


def test_without_codes_the_voxel_sizes_count(tmp_path: Path) -> None:
    found = read_volume(put(tmp_path / "a.nii", nifti(**NO_SFORM, **NO_QFORM)))
    np.testing.assert_allclose(found.spacing, SIZES, rtol=1e-6)


@pytest.mark.parametrize(("code", "name", "factor"), [(1, "metre", 1e-3), (3, "micron", 1e3), (9, "metre", 1e-3)])
def test_another_unit_is_named(tmp_path: Path, code: int, name: str, factor: float) -> None:
    rows = {f"srow_{axis}": {place: factor * SIZES[place]} for place, axis in enumerate("xyz")}
    path = put(tmp_path / "a.nii", nifti(xyzt_units=code, **rows))
    with pytest.raises(DataError, match=rf"in the unit {name} \(xyzt_units\); expected millimetres\. Write sform"):
        read_volume(path)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 7, 10, 255])
def test_plausible_sizes_in_mm_are_mm_whatever_the_unit(tmp_path: Path, code: int) -> None:
    """No voxel of a head has an edge of a metre or a micron, and every other reader takes the sizes for mm."""
    found = read_volume(put(tmp_path / "a.nii", nifti(xyzt_units=code)))
    np.testing.assert_allclose(found.spacing, SIZES, rtol=1e-6)


@pytest.mark.parametrize(
    ("version", "fields", "words"),
    [
        (1, {"magic": b"ni1"}, r"header of a pair \(.hdr and .img\); expected header and voxels in one NIfTI file"),
        (2, {"magic": b"ni2"}, r"header of a pair \(.hdr and .img\); expected header and voxels in one NIfTI file"),
        (1, {"magic": b""}, "an Analyze header, or a damaged one"),
        (1, {"magic": b"n+2"}, "an Analyze header, or a damaged one"),
        (1, {"sizeof_hdr": 347}, "unreadable"),
        (2, {"sizeof_hdr": 0}, "unreadable"),
        (2, {"eol_check": {2: 10}}, "EOL check"),
    ],
    ids=str,
)
def test_other_headers_are_refused(tmp_path: Path, version: int, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_volume(put(tmp_path / "a.nii", nifti(version=version, **fields)))


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path, version: int) -> None:
    whole = nifti(version=version)
    for length in [*range(0, 600, 7), len(whole) - 1]:
        with pytest.raises(DataError, match="unreadable"):
            read_volume(put(tmp_path / "a.nii", whole[:length]))
    assert read_volume(put(tmp_path / "a.nii", whole)).data.shape == SHAPE
