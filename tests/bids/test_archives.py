"""Volumes of other archives are matched to images by entities, or the reason for a failed match is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmh_ray.bids.archives import match
from mmh_ray.bids.entities import desc_of
from mmh_ray.errors import ConfigError
from tests.bids.archive_files import SPECIAL, put_special

pytestmark = pytest.mark.fast

RAW = "/data/sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"


def _row(uri: str = RAW) -> dict[str, str]:
    return {"image_id": Path(uri).name.partition(".")[0], "uri": uri}


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    "name",
    [
        "sub-01/ses-a/anat/sub-01_ses-a_desc-harmonized_T1w.nii.gz",
        "sub-01_ses-a_space-MNI152NLin2009cAsym_res-2_desc-haca3_T1w.nii",
        "deep/er/sub-01_ses-a_T1w.nii.gz",
        f"sub-01/ses-a/anat/sub-01_ses-a_desc-{desc_of('alder')}_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_desc-alder_T1w.nii.gz",
    ],
)
def test_desc_space_and_folders_do_not_count(tmp_path: Path, name: str) -> None:
    assert match("ours_target", _touch(tmp_path, name), [_row()]).paths == {"sub-01_ses-a_T1w": str(tmp_path / name)}


@pytest.mark.parametrize("name", ["sub-01_T1w.nii.gz", "sub-01_ses-b_T1w.nii.gz", "sub-01_ses-a_run-1_T1w.nii.gz"])
def test_other_entities_do(tmp_path: Path, name: str) -> None:
    found = match("other", _touch(tmp_path, name), [_row()])
    assert found.paths == {}
    assert found.unmatched[0][:3] == ("other", "sub-01_ses-a_T1w", "missing")
    assert f"no volume of sub-01_ses-a_T1w in {tmp_path}" in found.unmatched[0].reason


def test_two_that_could_be_meant_are_named(tmp_path: Path) -> None:
    names = ("sub-01_ses-a_desc-mine_T1w.nii.gz", "sub-01_ses-a_space-MNI_T1w.nii.gz")
    [unmatched] = match("other", _touch(tmp_path, *names), [_row()]).unmatched
    assert unmatched.status == "ambiguous"
    assert all(name in unmatched.reason for name in names)


def test_our_own_name_settles_it(tmp_path: Path) -> None:
    ours = "sub-01_ses-a_desc-harmonized_T1w.nii.gz"
    found = match("ours", _touch(tmp_path, ours, "sub-01_ses-a_desc-harmonized_space-MNI_T1w.nii.gz"), [_row()])
    assert found.paths == {"sub-01_ses-a_T1w": str(tmp_path / ours)}


def test_images_that_differ_in_desc_only_do_not_share_a_volume(tmp_path: Path) -> None:
    rows = [_row("/data/sub-01_ses-a_T1w.nii.gz"), _row("/data/sub-01_ses-a_desc-preproc_T1w.nii.gz")]
    found = match("other", _touch(tmp_path, "sub-01_ses-a_desc-preprocHarmonized_T1w.nii.gz"), rows)
    assert list(found.paths) == ["sub-01_ses-a_desc-preproc_T1w"]
    assert [row.status for row in found.unmatched] == ["ambiguous"]


def test_hidden_foreign_and_other_sequences_files_are_passed_over(tmp_path: Path) -> None:
    names = (".git/sub-01_ses-a_T1w.nii.gz", ".sub-01_ses-a_T1w.nii.gz", "brain.nii.gz", "sub-01_ses-a_T2w.nii.gz")
    others = ("sub-01_ses-a_desc-brain_mask.nii.gz", "sub-01_ses-a_desc-harmonized_T1w.json")
    assert match("other", _touch(tmp_path, *names, *others), [_row()]).unmatched[0].status == "missing"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other=.*nowhere: no such folder"):
        match("other", tmp_path / "nowhere", [_row()])


@pytest.mark.parametrize("kind", [kind for kind in SPECIAL if kind != "folder"])
def test_a_volume_that_is_no_regular_file_is_unusable(tmp_path: Path, kind: str) -> None:
    path = put_special(tmp_path / "other/sub-01_ses-a_T1w.nii.gz", kind)
    found = match("other", tmp_path / "other", [_row()])
    assert found.paths == {}
    assert found.unmatched[0][:3] == ("other", "sub-01_ses-a_T1w", "unusable")
    assert found.unmatched[0].reason.startswith(f"{path}: ")


def test_a_folder_of_the_name_of_a_volume_is_none(tmp_path: Path) -> None:
    put_special(tmp_path / "sub-01_ses-a_T1w.nii.gz", "folder")
    name = "anat/sub-01_ses-a_desc-x_T1w.nii.gz"
    assert match("other", _touch(tmp_path, name), [_row()]).paths == {"sub-01_ses-a_T1w": str(tmp_path / name)}


def test_links_within_the_folder_are_fine_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "other", tmp_path / "outside"
    _touch(root, "files/first.nii.gz")
    (root / "sub-01_ses-a_T1w.nii.gz").symlink_to("files/first.nii.gz")
    _touch(outside, "sub-01_ses-a_desc-x_T1w.nii.gz")
    (root / "outside").symlink_to(outside)
    (root / "round").symlink_to(root)
    assert match("other", root, [_row()]).paths == {"sub-01_ses-a_T1w": str(root / "sub-01_ses-a_T1w.nii.gz")}
