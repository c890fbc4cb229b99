"""Label maps are found by the entities in their names, in the archive's derivatives or in any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.labels import KEYS, add_labels
from mmh_ray.errors import DataError

pytestmark = pytest.mark.fast


def _rows(root: Path, *scans: str) -> list[dict[str, Any]]:
    return [{"uri": f"{root}/{scan.split('_')[0]}/anat/{scan}.nii.gz"} for scan in scans]


def _maps(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def _found(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["labels_uri"] and Path(row["labels_uri"]).name for row in rows]


def test_a_map_is_for_the_scans_that_its_name_fits_and_the_most_precise_is_taken(tmp_path: Path) -> None:
    names = ("sub-a_desc-dlmuse_dseg.nii.gz", "sub-a_ses-2_seg-aparc_dseg.nii", "sub-b_ses-1_dseg.nii.gz")
    _maps(tmp_path / "derivatives/labels/deep", *names, "sub-c_probseg.nii.gz", "sub-d_hemi-L_dseg.nii.gz")
    rows = _rows(tmp_path, "sub-a_ses-1_T1w", "sub-a_ses-2_T2w", "sub-b_ses-2_T1w", "sub-c_T1w", "sub-d_T1w")
    assert add_labels(rows) == []
    assert _found(rows) == [names[0], names[1], None, None, None]
    assert rows[0]["labels_names"] == ("dlmuse",)
    assert rows[1]["labels_names"] == ("aparc",)
    assert all(rows[2][key] is None for key in KEYS)


def test_a_map_in_the_scans_own_space_goes_before_one_in_a_templates(tmp_path: Path) -> None:
    _maps(tmp_path / "derivatives", "sub-a_desc-aseg_space-MNI152_dseg.nii.gz", "sub-a_space-T1w_dseg.nii.gz")
    _maps(tmp_path / "derivatives", "sub-b_space-MNI152_dseg.nii.gz", "sub-a_ses-1_space-MNI152_dseg.nii.gz")
    rows = _rows(tmp_path, "sub-a_ses-1_T1w", "sub-b_T1w", "sub-b_space-MNI152_T1w")
    assert add_labels(rows) == []
    assert _found(rows)[0] == "sub-a_space-T1w_dseg.nii.gz"
    assert [row["labels_space"] for row in rows] == [None, "MNI152", None]


def test_of_several_equal_maps_the_first_is_used_and_a_note_says_so(tmp_path: Path) -> None:
    _maps(tmp_path / "derivatives", "sub-a_desc-aseg_dseg.nii.gz", "sub-a_dseg.nii.gz")
    rows = _rows(tmp_path, "sub-a_T1w", "sub-a_T2w")
    [said] = add_labels(rows)
    assert _found(rows) == ["sub-a_desc-aseg_dseg.nii.gz"] * 2
    assert said.startswith("several label maps fit each of 2 images: the first by path was taken, such as sub-a_desc")


def test_a_folder_of_the_users_own_replaces_the_derivatives(tmp_path: Path) -> None:
    _maps(tmp_path / "bids/derivatives", "sub-a_desc-aseg_dseg.nii.gz")
    _maps(tmp_path / "mine/flat", "sub-a_desc-tissues_dseg.nii.gz")
    rows = _rows(tmp_path / "bids", "sub-a_T1w", "sub-b_T1w")
    add_labels(rows, tmp_path / "mine")
    assert _found(rows) == ["sub-a_desc-tissues_dseg.nii.gz", None]
    with pytest.raises(DataError, match="no label map of any scan"):
        add_labels(_rows(tmp_path / "bids", "sub-b_T1w"), tmp_path / "mine")


def test_without_derivatives_there_are_no_labels(tmp_path: Path) -> None:
    rows = [*_rows(tmp_path, "sub-a_T1w"), {"uri": "sub-a_T1w.nii.gz"}]
    assert add_labels(rows) == []
    assert _found(rows) == [None, None]
