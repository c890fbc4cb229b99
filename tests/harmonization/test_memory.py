"""The memory of a run: what fits into it, and the errors for what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.bids.rows import problem_of
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.harmonization.memory import (
    GB,
    LEAST_IMAGE_BYTES,
    RUN_BYTES,
    WORKER_BYTES,
    Workers,
    check_memory_setting,
    check_scan_size,
    image_bytes,
    largest_image,
    mark_too_large,
    within,
)

pytestmark = pytest.mark.fast


def scan(path: Path, voxels_an_axis: int) -> Path:
    nib.save(nib.Nifti1Image(np.zeros((voxels_an_axis,) * 3, np.uint8), np.eye(4)), path)
    return path


def image(path: Path) -> dict[str, Any]:
    return {"image_id": path.name, "uri": str(path), "status": "ok", "reason": None}


@pytest.mark.parametrize(("memory_gb", "largest_gb"), [(4, 0.3), (4, 0.5), (8, 0.2), (8, 1.7), (20, 1.7), (100, 3.0)])
@pytest.mark.parametrize("wanted", [Workers(1, 1), Workers(1, 4), Workers(8, 4)])
def test_images_in_work_at_a_time_fit_into_the_memory(memory_gb: float, largest_gb: float, wanted: Workers) -> None:
    largest = int(largest_gb * GB)

    def taken(workers: Workers) -> float:
        return RUN_BYTES + workers.number * (WORKER_BYTES + workers.images_each * largest)

    found = within(memory_gb, largest, wanted)
    assert taken(found) <= memory_gb * GB
    assert 1 <= found.number <= wanted.number
    assert 1 <= found.images_each <= wanted.images_each
    if found.number < wanted.number:
        assert taken(Workers(found.number + 1, 1)) > memory_gb * GB
    if found.images_each < wanted.images_each:
        assert taken(Workers(found.number, found.images_each + 1)) > memory_gb * GB


def test_more_memory_than_is_needed_changes_nothing() -> None:
    assert within(1000, GB, Workers(8, 4)) == Workers(8, 4)


def test_a_scan_that_does_not_fit_alone_fails_before_it_is_read(tmp_path: Path) -> None:
    small, large = scan(tmp_path / "small.nii.gz", 16), scan(tmp_path / "large.nii.gz", 256)
    assert image_bytes(str(small)) == image_bytes(str(tmp_path / "absent.nii")) == LEAST_IMAGE_BYTES
    assert image_bytes(str(large)) > 5 * LEAST_IMAGE_BYTES
    rows = [image(small), image(large)]
    assert largest_image(rows) == image_bytes(str(large))
    mark_too_large(rows, 0)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    mark_too_large(rows, 3)
    assert [row["status"] for row in rows] == ["ok", "unusable"]
    assert "which harmonize.memory_gb=3 leaves for images" in problem_of(rows[1]).text
    assert largest_image(rows) == LEAST_IMAGE_BYTES
    check_scan_size(str(small), 3)
    check_scan_size(str(large), 0)
    with pytest.raises(DataError, match=r"at most the 2 GB of harmonize\.memory_gb"):
        check_scan_size(str(large), 2)


def test_memory_in_which_nothing_fits_is_refused() -> None:
    check_memory_setting(0)
    check_memory_setting(3)
    with pytest.raises(ConfigError, match=r"memory_gb=1; expected at least 2\.7 GB, or 0"):
        check_memory_setting(1)
