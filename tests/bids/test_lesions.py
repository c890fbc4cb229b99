"""Lesion masks are found by the entities in their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.lesions import add_lesions
from tests.bids.archive_files import SPECIAL, put, put_special

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


def _scan(root: Path, subject: str) -> dict[str, Any]:
    return {"uri": str(root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz")}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_left_out_and_warned_of(tmp_path: Path, kind: str, caplog: Any) -> None:
    folder = tmp_path / "bids/derivatives/manual"
    put_special(folder / "sub-a_label-lesion_mask.nii.gz", kind)
    good = put(folder / "sub-b_label-lesion_mask.nii.gz")
    rows = [_scan(tmp_path / "bids", subject) for subject in "ab"]
    add_lesions(rows)
    assert [row["lesion_uri"] for row in rows] == [None, str(good)]
    assert "1 x a lesion mask left out: " in caplog.text


def test_derivatives_behind_a_link_out_are_not_read(tmp_path: Path) -> None:
    put(tmp_path / "outside/sub-a_label-lesion_mask.nii.gz")
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids/derivatives").symlink_to(tmp_path / "outside")
    rows = [_scan(tmp_path / "bids", "a")]
    add_lesions(rows)
    assert rows[0]["lesion_uri"] is None


def test_the_second_mask_of_the_same_entities_is_warned_of(tmp_path: Path, caplog: Any) -> None:
    first = put(tmp_path / "derivatives/a/sub-a_label-lesion_mask.nii.gz")
    put(tmp_path / "derivatives/b/sub-a_space-orig_label-lesion_mask.nii.gz")
    rows = [_scan(tmp_path, "a")]
    add_lesions(rows)
    assert rows[0]["lesion_uri"] == str(first)
    assert "1 x a second lesion mask with the same entities, left out" in caplog.text


def test_the_archive_is_what_holds_the_subjects_folder(tmp_path: Path) -> None:
    """A folder further up may begin with sub-, too; derivatives beside it belong to another archive."""
    root = tmp_path / "sub-study/bids"
    put(tmp_path / "derivatives/sub-a_label-lesion_mask.nii.gz")
    own = put(root / "derivatives/sub-a_label-lesion_mask.nii.gz")
    rows = [_scan(root, "a")]
    add_lesions(rows)
    assert rows[0]["lesion_uri"] == str(own)
