"""Brain masks below derivatives/ are matched by entities; special files are never opened."""

import os
from pathlib import Path

import pytest

from tests.bids.archive_files import by_id, image, people, put, put_special

pytestmark = pytest.mark.fast


def test_masks_are_matched_by_entities_and_derivatives_are_no_images(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    for stem in ("sub-01_ses-1_T1w", "sub-01_ses-1_run-2_T1w", "sub-01_ses-2_T1w"):
        image(tmp_path, stem)
    derived = tmp_path / "derivatives/pipe"
    mask = image(derived, "sub-01_ses-1_desc-brain_mask")
    image(derived, "sub-01_ses-2_space-MNI_desc-brain_mask")
    image(derived, "sub-01_ses-1_desc-harmonized_T1w")
    masks = {key: row["mask_uri"] for key, row in by_id(tmp_path).items()}
    assert masks == {"sub-01_ses-1_T1w": str(mask), "sub-01_ses-1_run-2_T1w": None, "sub-01_ses-2_T1w": None}


def test_masks_that_are_left_out_are_warned_of(tmp_path, caplog, monkeypatch):
    root, outside = tmp_path / "bids", put(tmp_path / "outside.nii.gz")
    people(root, "sub-01 A 30 F", "sub-02 A 30 F")
    for stem in ("sub-01_T1w", "sub-02_T1w"):
        image(root, stem)
    first = image(root / "derivatives/a", "sub-01_desc-brain_mask")
    second = image(root / "derivatives/b", "sub-01_desc-brain_mask")
    link = root / "derivatives/a/sub-02_desc-brain_mask.nii.gz"
    link.symlink_to(outside)
    os.close(os.open(os.fsencode(link.parent) + b"/sub-02_acq-\xff_desc-brain_mask.nii", os.O_CREAT))
    os.mkdir(os.fsencode(root) + b"/derivatives/\xff")
    os.close(os.open(os.fsencode(root) + b"/derivatives/\xff/sub-02_desc-brain_mask.nii", os.O_CREAT))
    closed = root / "derivatives/closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(folder):
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    masks = {key: row["mask_uri"] for key, row in by_id(root).items()}
    assert masks == {"sub-01_T1w": str(first), "sub-02_T1w": None}
    assert "sub-02_acq-\\xff_desc-brain_mask.nii is left out" in caplog.messages[0]
    assert caplog.messages[1:] == [
        f"1 x a folder of derivatives that cannot be read: {closed}",
        f"1 x a brain mask left out, a link out of the archive: {link}",
        f"1 x a second brain mask with the same entities, left out: {second}",
        rf"1 x a brain mask left out, its path is not UTF-8: {root}/derivatives/\xff/sub-02_desc-brain_mask.nii",
    ]


def test_a_mask_of_the_same_sequence_goes_before_one_of_the_session(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    for stem in ("sub-01_T1w", "sub-01_T2w"):
        image(tmp_path, stem)
    common = image(tmp_path / "derivatives/pipe", "sub-01_desc-brain_mask")
    own = image(tmp_path / "derivatives/pipe", "sub-01_mod-T2w_desc-brain_mask")
    masks = {key: row["mask_uri"] for key, row in by_id(tmp_path).items()}
    assert masks == {"sub-01_T1w": str(common), "sub-01_T2w": str(own)}


@pytest.mark.parametrize("kind", ["dangling", "folder", "pipe", "socket"])
def test_a_mask_that_is_no_regular_file_costs_its_image_only(tmp_path, kind):
    """The user meant this mask to be used, so none is estimated instead."""
    people(tmp_path, "sub-01 A 30 F", "sub-02 A 30 F")
    for stem in ("sub-01_T1w", "sub-02_T1w"):
        image(tmp_path, stem)
    mask = put_special(tmp_path / "derivatives/pipe/sub-01/anat/sub-01_desc-brain_mask.nii.gz", kind)
    for require_site in (True, False):
        rows = by_id(tmp_path, require_site=require_site)
        assert rows["sub-01_T1w"]["status"] == "unusable"
        assert rows["sub-01_T1w"]["reason"].startswith(f"brain mask {mask}: ")
        assert "expected a regular file. Fetch its content" in rows["sub-01_T1w"]["reason"]
        assert rows["sub-02_T1w"]["status"] == "ok"


@pytest.mark.parametrize("kind", ["zeros", "link out", "loop"])
def test_a_mask_behind_a_link_out_is_left_out_and_warned_of(tmp_path, kind, caplog):
    people(tmp_path, "sub-01 A 30 F")
    image(tmp_path, "sub-01_T1w")
    put_special(tmp_path / "derivatives/pipe/sub-01_desc-brain_mask.nii.gz", kind)
    assert by_id(tmp_path)["sub-01_T1w"]["mask_uri"] is None
    assert "a brain mask left out, a link out of the archive" in caplog.text


def test_links_to_folders_of_derivatives_are_not_followed(tmp_path, caplog):
    root, outside = tmp_path / "bids", tmp_path / "outside"
    people(root, "sub-01 A 30 F")
    image(root, "sub-01_T1w")
    image(outside, "sub-01_desc-brain_mask")
    (root / "derivatives").mkdir()
    (root / "derivatives/pipe").symlink_to(outside)
    (root / "derivatives/round").symlink_to(root)
    assert by_id(root)["sub-01_T1w"]["mask_uri"] is None
    assert f"2 x a link in the place of derivatives, which is not followed: {root}/derivatives/pipe" in caplog.text


def test_derivatives_that_are_a_link_out_are_not_read(tmp_path, caplog):
    root, outside = tmp_path / "bids", tmp_path / "outside"
    people(root, "sub-01 A 30 F")
    image(root, "sub-01_T1w")
    image(outside, "sub-01_desc-brain_mask")
    (root / "derivatives").symlink_to(outside)
    assert by_id(root)["sub-01_T1w"]["mask_uri"] is None
    assert "which is not followed" in caplog.text
