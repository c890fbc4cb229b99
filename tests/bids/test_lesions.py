"""Lesion masks are found by the entities in their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmh_ray.bids.lesions import add_lesions

pytestmark = pytest.mark.fast


def test_a_mask_is_for_the_scans_that_its_name_fits_and_the_most_precise_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "derivatives" / "manual" / "sub-a" / "anat"
    folder.mkdir(parents=True)
    names = ("sub-a", "sub-a_ses-2_space-orig", "sub-ab", "sub-c_ses-1", "sub-a_what")
    for name in names:
        (folder / f"{name}_label-lesion_mask.nii.gz").touch()
    scans = ("a_ses-1", "a_ses-2", "c_ses-2", "d_ses-1")
    rows = [{"uri": f"{tmp_path}/sub-{scan[0]}/anat/sub-{scan}_T1w.nii.gz"} for scan in scans]
    add_lesions(rows)
    found = [
        row["lesion_uri"] and Path(row["lesion_uri"]).name.removesuffix("_label-lesion_mask.nii.gz") for row in rows
    ]
    assert found == ["sub-a", "sub-a_ses-2_space-orig", None, None]
