"""Files beside an archive's scans are found by the entities in their names, and no link leads out of the archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmh_ray.bids.companions import find_companions, fitting, most_precise, nearest_archive
from mmh_ray.bids.entities import parse

pytestmark = pytest.mark.fast

ENDINGS = ("_mask.nii.gz",)


def test_the_archive_holds_the_subjects_folder_even_below_a_folder_named_like_one() -> None:
    scan = parse("sub-1_ses-1_T1w.nii.gz")
    assert nearest_archive("/data/bids/sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz", scan) == Path("/data/bids")
    assert nearest_archive("/sub-lab/bids/sub-1/anat/sub-1_ses-1_T1w.nii.gz", scan) == Path("/sub-lab/bids")
    assert nearest_archive("/data/sub-1_ses-1_T1w.nii.gz", scan) is None


def test_links_out_hidden_folders_and_other_names_are_left_out(tmp_path: Path, caplog) -> None:
    folder = tmp_path / "bids/derivatives"
    for part in ("a", ".hidden", "a/deep"):
        (folder / part).mkdir(parents=True)
    for name in ("a/sub-1_mask.nii.gz", ".hidden/sub-2_mask.nii.gz", "a/sub-_mask.nii.gz", "a/other_mask.nii.gz"):
        (folder / name).touch()
    (tmp_path / "sub-3_mask.nii.gz").touch()
    (folder / "a/sub-3_mask.nii.gz").symlink_to(tmp_path / "sub-3_mask.nii.gz")
    (folder / "a/deep/sub-4_mask.nii.gz").symlink_to("../sub-1_mask.nii.gz")
    assert find_companions(tmp_path / "bids", ENDINGS, (), "mask", is_archive=True).keys() == {"1", "4"}
    assert "1 x a mask left out: " in caplog.text
    assert "sub-3_mask.nii.gz: a link out of the archive" in caplog.text
    # In a folder that the user chose, links may lead out of it.
    assert find_companions(folder, ENDINGS, (), "mask").keys() == {"1", "3", "4"}


def test_mod_asks_for_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "sub-1_mod-FLAIR_mask.nii.gz").touch()
    found = find_companions(tmp_path, ENDINGS, (), "mask")
    assert len(fitting(parse("sub-1_FLAIR.nii.gz"), found)) == 1
    assert fitting(parse("sub-1_T1w.nii.gz"), found) == []


def test_the_most_precise_names_most_of_the_scan(tmp_path: Path) -> None:
    for name in ("sub-1_mask", "sub-1_ses-2_desc-a_mask", "sub-1_ses-2_desc-b_mask", "sub-1_ses-3_mask"):
        (tmp_path / f"{name}.nii.gz").touch()
    found = fitting(parse("sub-1_ses-2_T1w.nii.gz"), find_companions(tmp_path, ENDINGS, ("desc",), "mask"))
    assert len(found) == 3
    assert [one.path.name[:16] for one in most_precise(found)] == ["sub-1_ses-2_desc"] * 2
    assert most_precise([]) == []
