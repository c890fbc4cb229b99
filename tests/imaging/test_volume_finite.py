"""An image with a voxel that is not finite is never written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmh_ray.errors import DataError
from mmh_ray.imaging.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.nan, np.float32),
        (np.inf, np.float32),
        (-np.inf, np.float32),
        (np.nan, np.uint8),
        (np.inf, np.int16),
        (1e300, np.float32),  # finite, but not in the file
    ],
)
def test_a_voxel_that_is_not_finite_is_refused_and_nothing_is_left(tmp_path: Path, value: float, dtype: type) -> None:
    data = np.arange(64, dtype=np.float64).reshape(4, 4, 4)
    path = tmp_path / "out.nii.gz"
    write_volume(Volume(data, np.eye(4)), path, dtype)
    before = path.read_bytes()
    data[1, 2, 3] = value
    with pytest.raises(DataError, match=r"NaN or infinite voxels.*out\.nii\.gz; expected finite intensities"):
        write_volume(Volume(data, np.eye(4)), path, dtype)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["out.nii.gz"]


def test_what_is_finite_is_written_as_it_is(tmp_path: Path) -> None:
    data = np.linspace(-1e30, 1e30, 64, dtype=np.float32).reshape(4, 4, 4)
    write_volume(Volume(data, np.eye(4)), tmp_path / "out.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "out.nii.gz").data, data)
