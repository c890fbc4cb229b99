"""Volumes: every unusable file is refused with its reason; geometry and header survive reading and writing."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import nibabel as nib
import numpy as np
import psutil
import pytest

from mmh_ray.errors import DataError
from mmh_ray.imaging.volume import (
    BYTES_PER_VOXEL,
    SharedMemory,
    Volume,
    check_geometry,
    check_memory,
    read_mask,
    read_volume,
    write_volume,
)

pytestmark = pytest.mark.fast

AFFINE = np.array([[-0.9, 0.1, 0, 80], [0.1, 1.1, 0, -90], [0, 0, 2.0, -60], [0, 0, 0, 1.0]])


def ramp(*shape: int) -> np.ndarray:
    """Distinct intensities in every voxel."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """A NIfTI file with this content."""
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def test_reads_data_affine_and_spacing(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.nii.gz", ramp(4, 5, 6)))
    np.testing.assert_array_equal(volume.data, ramp(4, 5, 6))
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(volume.spacing, np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-6)


def test_trailing_singleton_axes_are_dropped(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.nii", ramp(4, 5, 6)[..., None, None]))
    np.testing.assert_array_equal(volume.data, ramp(4, 5, 6))


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), AFFINE)
    image.header.set_slope_inter(0.5, -10)
    image.to_filename(tmp_path / "a.nii")
    stored = np.asarray(nib.load(tmp_path / "a.nii").dataobj.get_unscaled())
    expected = 0.5 * stored.astype(float) - 10
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").data, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_number_type_is_read_with_its_scaling(tmp_path: Path, dtype: type) -> None:
    stored = np.arange(60).astype(dtype).reshape(3, 4, 5)
    image = nib.Nifti1Image(stored, AFFINE, dtype=dtype)
    image.header.set_data_dtype(dtype)
    path = tmp_path / "a.nii"
    image.to_filename(path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([2.5, -40], "<f4").tobytes()  # scl_slope, scl_inter: negative intensities come out
    path.write_bytes(raw)
    np.testing.assert_allclose(read_volume(path).data, 2.5 * stored.astype(np.float64) - 40, rtol=1e-6)


def test_colours_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(pixels, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="one number per voxel"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("size", [0.001, 900.0])
def test_voxels_of_impossible_size_are_refused(tmp_path: Path, size: float) -> None:
    with pytest.raises(DataError, match=r"0\.02 to 30 mm"):
        read_volume(save(tmp_path / "a.nii", ramp(4, 5, 6), np.diag([1, size, 1, 1])))


def test_an_image_larger_than_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """700 x 700 x 700 voxels in a file that holds only a header."""
    header = nib.Nifti1Header()
    header.set_data_shape((700, 700, 700))
    header.set_data_dtype(np.int16)
    header.set_sform(AFFINE, 1)
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4))
    monkeypatch.setattr("mmh_ray.imaging.volume.free_memory", lambda: 8 * 2**30)
    with pytest.raises(
        DataError, match=r"343 million voxels, about 3\d\.\d GiB to work on; expected at most the 8\.0 GiB"
    ):
        check_memory(path)
    monkeypatch.setattr("mmh_ray.imaging.volume.free_memory", lambda: 64 * 2**30)
    check_memory(path)
    with pytest.raises(DataError, match="unreadable"):
        read_volume(path)


def test_images_in_parallel_wait_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for four images and two processes: the second image waits until the first has finished."""
    path, room, order = save(tmp_path / "a.nii", ramp(20, 20, 20)), SharedMemory(processes=2), list[str]()
    memory = SimpleNamespace(available=3.9 * BYTES_PER_VOXEL * 20**3)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    def second() -> None:
        with room.taken_by(path):
            order.append("second")

    with room.taken_by(path):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
    memory.available /= 4
    with pytest.raises(DataError, match="at most the"), room.taken_by(path):
        pass


def test_nifti2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(ramp(3, 4, 5), AFFINE), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data, ramp(3, 4, 5))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="unreadable"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(("level", "word"), [(0, "no"), (1, "every")])
def test_a_mask_of_nothing_or_everything_is_refused_as_such(tmp_path: Path, level: int, word: str) -> None:
    path = save(tmp_path / "mask.nii", np.full((3, 4, 5), level, np.uint8))
    with pytest.raises(DataError, match=f"a brain mask with {word} voxel inside; expected the brain and nothing else"):
        read_mask(path)


def test_a_mask_is_read_as_any_volume(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.nii", (ramp(3, 4, 5) > 30).astype(np.uint8))
    np.testing.assert_array_equal(read_mask(path).data, read_volume(path).data)
    with pytest.raises(DataError, match="NaN or infinite"):
        read_mask(save(tmp_path / "nan.nii", np.where(ramp(3, 4, 5) > 30, 1, np.nan)))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.nii: unreadable \(No such file or directory\); .* Put it back"):
        read_volume(tmp_path / "nowhere.nii")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_gzip_is_refused(tmp_path: Path, rng: np.random.Generator, share: float) -> None:
    path = save(tmp_path / "a.nii.gz", rng.random((16, 16, 16), np.float32))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="unreadable"):
        read_volume(path)


def test_truncated_uncompressed_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(8, 8, 8))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="unreadable"):
        read_volume(path)


def test_gzip_with_one_wrong_bit_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = save(tmp_path / "a.nii.gz", rng.integers(0, 1000, (16, 16, 16)).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="unreadable"):
        read_volume(path)


@pytest.mark.parametrize(
    "content", [b"not an image at all", gzip.compress(b"not an image at all")], ids=["plain", "gzip"]
)
def test_a_file_that_is_not_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="unreadable"):
        read_volume(path)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(ramp(4, 4, 4), np.eye(4)), tmp_path / "a.mgz")
    with pytest.raises(DataError, match="MGHImage; expected a NIfTI-1 or NIfTI-2 file"):
        read_volume(tmp_path / "a.mgz")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, bad: float) -> None:
    data = ramp(4, 4, 4)
    data[0, :2, 0] = bad
    with pytest.raises(DataError, match="2 NaN or infinite voxels"):
        read_volume(save(tmp_path / "a.nii", data))


def test_constant_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"constant image \(every voxel 7\)"):
        read_volume(save(tmp_path / "a.nii", np.full((4, 4, 4), 7, np.float32)))


def test_series_is_refused_by_shape(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4-D image of shape \(4, 4, 4, 3\)"):
        read_volume(save(tmp_path / "a.nii", ramp(4, 4, 4, 3)))


@pytest.mark.parametrize("shape", [(8, 8, 1), (1, 8, 8)])
def test_single_slice_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="at least 2 voxels along each axis"):
        read_volume(save(tmp_path / "a.nii", ramp(*shape)))


def test_two_dimensional_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2-D image"):
        read_volume(save(tmp_path / "a.nii", ramp(8, 8)))


def test_singular_affine_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(4, 4, 4), None)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    for name in ("srow_x", "srow_y", "srow_z"):
        image.header[name] = 0
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + image.get_fdata(dtype=np.float32).tobytes())
    with pytest.raises(DataError, match="singular affine"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("affine", [None, np.full((4, 4), np.nan)])
def test_unknown_affine_is_refused(affine: np.ndarray | None) -> None:
    with pytest.raises(DataError, match="singular affine"):
        check_geometry((4, 4, 4), affine, "a.nii")


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1), (4, 4)])
def test_write_keeps_affine_codes_and_units(tmp_path: Path, sform: int, qform: int) -> None:
    rotated = np.diag([1.0, 1.5, 2.0, 1.0])
    rotated[:3, 3] = -10, 20, -30
    image = nib.Nifti1Image(ramp(4, 5, 6), rotated)
    image.set_sform(rotated, sform)
    image.set_qform(rotated, qform)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "in.nii.gz")

    source = read_volume(tmp_path / "in.nii.gz")
    write_volume(source.like(source.data * 2), tmp_path / "out.nii.gz")

    before, after = nib.load(tmp_path / "in.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == (sform, qform)
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()
    np.testing.assert_array_equal(after.get_fdata(), ramp(4, 5, 6) * 2)


def test_an_sform_and_a_qform_that_differ_are_both_kept(tmp_path: Path) -> None:
    """Software that reads either of them shows the derivative at the position of the scan."""
    image = nib.Nifti1Image(ramp(4, 5, 6), AFFINE)
    other = np.diag([-0.9, 1.1, 2.0, 1.0])
    image.set_sform(AFFINE, 1)
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    write_volume(volume, tmp_path / "b.nii.gz")
    written = nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.get_sform(), nib.load(tmp_path / "a.nii.gz").get_sform())
    np.testing.assert_array_equal(written.get_qform(), nib.load(tmp_path / "a.nii.gz").get_qform())
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)


def test_write_does_not_inherit_scaling_or_window(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), AFFINE)
    image.header.set_slope_inter(0.1, 5)
    image.header["cal_max"] = 100
    image.to_filename(tmp_path / "in.nii")
    source = read_volume(tmp_path / "in.nii")
    write_volume(source, tmp_path / "out.nii")
    written = nib.load(tmp_path / "out.nii")
    assert (written.dataobj.slope, written.dataobj.inter, float(written.header["cal_max"])) == (1, 0, 0)
    np.testing.assert_array_equal(np.asarray(written.dataobj), source.data)


def test_write_of_a_source_with_a_singleton_axis_is_three_dimensional(tmp_path: Path) -> None:
    source = read_volume(save(tmp_path / "in.nii", ramp(4, 5, 6)[..., None]))
    write_volume(source, tmp_path / "out.nii")
    assert nib.load(tmp_path / "out.nii").shape == (4, 5, 6)


def test_computed_volume_is_read_back_equal(tmp_path: Path) -> None:
    write_volume(Volume(ramp(3, 4, 5), AFFINE), tmp_path / "new" / "a.nii.gz")
    volume = read_volume(tmp_path / "new" / "a.nii.gz")
    np.testing.assert_array_equal(volume.data, ramp(3, 4, 5))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.header is not None
    assert volume.header.get_xyzt_units()[0] == "mm"


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(Volume(ramp(3, 4, 5), AFFINE), path)
    before = path.read_bytes()

    def half(_image: nib.Nifti1Image, stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", half)
    with pytest.raises(OSError, match="no space left"):
        write_volume(Volume(ramp(3, 4, 5), AFFINE), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_image_is_packed_to_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    volume = Volume(ramp(3, 4, 5), AFFINE)
    for name in ("a.nii.gz", "other.nii.gz"):
        write_volume(volume, tmp_path / name)
    packed = (tmp_path / "a.nii.gz").read_bytes()
    assert packed == (tmp_path / "other.nii.gz").read_bytes()
    assert packed[3:8] == bytes(5)  # no name, no time
    write_volume(volume, tmp_path / "a.nii")
    assert gzip.decompress(packed) == (tmp_path / "a.nii").read_bytes()


def test_like_refuses_data_of_another_shape() -> None:
    with pytest.raises(AssertionError):
        Volume(ramp(3, 4, 5), AFFINE).like(ramp(3, 4, 6))
