"""Every unusable image of the archive gets a row with its reason, or is named in a warning with a count."""

import os
from pathlib import Path

import pytest

from mmh_ray.bids.images import images_among, is_image
from mmh_ray.bids.manifest import find_images, to_table
from mmh_ray.errors import DataError
from tests.bids.archive_files import by_id, image, people, put

pytestmark = pytest.mark.fast


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One good image."""
    root = tmp_path / "bids"
    people(root, "sub-01 A 30 F", "sub-02 A 30 F", "sub-03 A 30 F")
    image(root, "sub-01_ses-1_T1w")
    return root


def strays(root: Path, **options) -> dict[str, str]:
    """Reasons of all rows but the good one."""
    rows = by_id(root, **options)
    assert rows.pop("sub-01_ses-1_T1w")["status"] == "ok"
    assert {row["status"] for row in rows.values()} <= {"unusable"}
    assert to_table(rows.values()).num_rows == len(rows)
    return {key: row["reason"] for key, row in rows.items()}


@pytest.mark.parametrize(
    "path",
    [
        "sub-01/ses-2/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-3/Anat/sub-01_ses-3_T1w.nii.gz",
        "sub-01/ses-3/anatomical/sub-01_ses-3_T1w.nii.gz",
        "sub-01/SES-4/anat/sub-01_ses-4_T1w.nii.gz",
        "sub-01/ses5/anat/sub-01_ses-5_T1w.nii.gz",
        "sub-01/ses-1/anat/run1/sub-01_ses-1_run-1_T1w.nii.gz",
        "sub-01/ses-1/anat/anat/sub-01_ses-1_run-1_T1w.nii.gz",
        "sub-01/ses-1/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-1/func/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/dwi/deep/sub-01_ses-1_FLAIR.nii",
        "sub-01/ses-1/t1/scan.nii.gz",
        "sub-01/ses-1/scan.nii",
        "sub-01/sub-01_T1w.nii.gz",
        "sub-01/v1.0/sub-01_T1w.nii.gz",
        "Sub-03/anat/Sub-03_T1w.nii.gz",
        "SUB-03/anat/sub-03_T1w.nii.gz",
        "sub_03/anat/sub-03_T1w.nii.gz",
        "sub03/anat/sub-03_T1w.nii.gz",
        "02/anat/sub-02_T1w.nii.gz",
        "02/T1.mgz",
    ],
)
@pytest.mark.parametrize("require_site", [True, False])
def test_an_image_in_another_place_is_a_row(archive, path, require_site):
    put(archive / path)
    found = strays(archive, require_site=require_site)
    assert list(found) == [path]
    assert f"{path}: an image in another place; expected it in sub-*/[ses-*/]anat/. Move it" in found[path]


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ses-1_T1w.mgz",
        "sub-01_ses-1_T1w.mgh",
        "sub-01_ses-1_T1w.MGH.GZ",
        "sub-01_ses-1_T1w.nii.bz2",
        "sub-01_ses-1_T1w.nii.xz",
        "sub-01_ses-1_T1w.nii.zst",
        "sub-01_ses-1_T1w.nii.zip",
        "sub-01_ses-1_T1w.NII.Z",
        "sub-01_ses-1_T1w.nii.gz.part",
        "sub-01_ses-1_T1w.nii.gz~",
        "sub-01_ses-1_T1w.nii (1).gz",
        "sub-01_ses-1_T1w.mnc",
        "sub-01_ses-1_T1w.nrrd",
        "sub-01_ses-1_T1w.nhdr",
        "sub-01_ses-1_T1w.mha",
        "sub-01_ses-1_T1w.img",
        "sub-01_ses-1_T1w.hdr",
        "sub-01_ses-1_T1w.BRIK.gz",
        "sub-01_ses-1_T1w.PAR",
        "sub-01_ses-1_T1w.gz",
        "sub-01_ses-1_T1w",
        "sub-01_ses-1_t1w.bin",
        "scan.img.gz",
    ],
)
def test_a_format_that_is_not_read_is_a_row(archive, name):
    put(archive / "sub-01/ses-1/anat" / name)
    path = f"sub-01/ses-1/anat/{name}"
    found = strays(archive)
    assert list(found) == [path]
    assert found[path].startswith(f"{path}: an image ")
    assert "expected .nii or .nii.gz. Convert it" in found[path]


def test_two_files_of_one_image_are_one_row(archive):
    for ending in ("img", "hdr"):
        put(archive / f"sub-01/ses-1/anat/sub-01_ses-1_T1w.{ending}")
    assert len(strays(archive)) == 1


def test_a_dicom_series_is_one_row(archive):
    for number in range(30):
        put(archive / f"sub-01/ses-1/anat/DICOM/IM{number:04d}.dcm")
        put(archive / f"sub-01/ses-2/{number}.IMA")
    assert strays(archive) == {
        "sub-01/ses-1/anat/DICOM/IM0000.dcm": "sub-01/ses-1/anat/DICOM/IM0000.dcm: the first of 30 DICOM files; "
        "expected NIfTI in sub-*/[ses-*/]anat/. Convert them with dcm2niix.",
        "sub-01/ses-2/0.IMA": "sub-01/ses-2/0.IMA: the first of 30 DICOM files; "
        "expected NIfTI in sub-*/[ses-*/]anat/. Convert them with dcm2niix.",
    }


def test_rows_of_strays_have_subject_and_session(archive):
    put(archive / "sub-01/ses-2/sub-01_ses-2_T1w.mgz")
    row = by_id(archive)["sub-01/ses-2/sub-01_ses-2_T1w.mgz"]
    assert (row["subject"], row["session"], row["sequence"], row["site"]) == ("01", "2", "T1w", None)


@pytest.mark.parametrize(
    "path",
    [
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz",
        "sub-01/ses-1/func/IM0001.dcm",
        "sub-01/ses-1/dwi/sub-01_ses-1_dwi.nii.gz",
        "sub-01/ses-1/fmap/sub-01_ses-1_magnitude1.nii.gz",
        "sub-01/ses-1/perf/sub-01_ses-1_asl.nii.gz",
        "sub-01/ses-1/pet/sub-01_ses-1_pet.nii.gz",
        "sub-01/ses-1/meg/sub-01_ses-1_meg.ds/data.img",
        "sub-01/ses-1/micr/sub-01_SEM.ome.zarr/0/0.img",
        "sub-01/ses-1/Func/sub-01_ses-1_bold.nii.gz",
        "sub-01/ses-2/sub-01_ses-2_bold.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.json",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz.md5",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.png",
        "sub-01/ses-1/anat/notes.txt",
        "sub-01/ses-1/anat/._sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/.trash/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/.bidsignore",
        "derivatives/pipe/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
        "code/template.nii.gz",
        ".git/annex/objects/a/b.nii.gz",
        "README.md",
        "CHANGES",
    ],
)
def test_files_that_are_no_anatomical_images_are_not_reported(archive, path, caplog):
    put(archive / path, "{}")
    assert strays(archive) == {}
    assert caplog.messages == []


@pytest.mark.parametrize(
    "path",
    [
        "sub-01_T1w.nii.gz",
        "template.mgz",
        "rawdata/sub-01/anat/sub-01_T1w.nii.gz",
        "patient3/T1.nii",
        "Derivatives/pipe/sub-01_T1w.nii.gz",
        "ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "site A/sub-01/anat/sub-01_T1w.nii.gz",
        "subjects/bert/mri/T1.mgz",
    ],
)
def test_an_image_outside_of_the_folders_of_subjects_is_warned_of(archive, path, caplog):
    put(archive / path)
    assert strays(archive) == {}
    assert caplog.messages == [f"1 x an image outside of the folders of subjects, left out: {path}"]


def test_of_images_outside_the_first_of_each_folder_is_named(archive, caplog):
    for folder in ("a", "b", "c"):
        for number in range(10):
            put(archive / folder / f"deep/{number}_T1w.nii.gz")
    assert strays(archive) == {}
    [message] = caplog.messages
    assert message.startswith("30 x an image outside of the folders of subjects, left out: ")
    assert all(f"{folder}/deep/0_T1w.nii.gz" in message for folder in ("a", "b", "c"))
    assert message.endswith("and 25 more")


@pytest.mark.parametrize("place", ["rawdata", "data/raw", "site A"])
def test_an_archive_one_folder_further_down_is_pointed_to(tmp_path, place):
    image(tmp_path / place, "sub-01_T1w")
    stray = f"{place}/sub-01/anat/sub-01_T1w.nii.gz"
    remedy = f"no image in its place, but 1 elsewhere: {stray}; .*such as {tmp_path}/{place}\\."
    for require_site in (True, False):
        with pytest.raises(DataError, match=remedy):
            find_images(tmp_path, require_site=require_site)


def test_an_archive_whose_images_all_lie_elsewhere_names_them(tmp_path):
    put(tmp_path / "sub-01/sub-01_T1w.nii.gz")
    put(tmp_path / "03/T1.nii.gz")
    named = r"03/T1\.nii\.gz, sub-01/sub-01_T1w\.nii\.gz; .*\. Name the folder of the sub-\*\.$"
    with pytest.raises(DataError, match=f"no image in its place, but 2 elsewhere: {named}"):
        find_images(tmp_path)


def test_an_anat_folder_without_an_image_is_warned_of(archive, caplog):
    put(archive / "sub-01/ses-2/anat/IM0001")
    (archive / "sub-02/anat").mkdir(parents=True)
    assert strays(archive) == {}
    assert caplog.messages == [
        "1 x an anat folder without an image: sub-01/ses-2/anat",
        "1 x no image in sub-*/[ses-*/]anat/ of a subject: sub-02",
    ]


def test_links_to_folders_lead_neither_out_nor_round(archive, tmp_path, caplog):
    outside = tmp_path / "outside"
    image(outside, "sub-02_T1w")
    (archive / "sub-02").symlink_to(outside / "sub-02")
    (archive / "sub-01/ses-2").symlink_to(archive / "sub-01")
    (archive / "sub-01/ses-3").symlink_to(archive)
    (archive / "sub-01/ses-1/more").symlink_to(archive)
    (archive / "sub-01/ses-1/anat/round").symlink_to(".")
    (archive / "elsewhere").symlink_to(outside)
    (archive / "round").symlink_to(archive)
    found = strays(archive)
    assert found.keys() == {"sub-02", "sub-01/ses-2", "sub-01/ses-3"}
    assert "a link out of the archive; expected a folder inside it" in found["sub-02"]
    assert "a link to a folder that it lies in" in found["sub-01/ses-2"]
    assert "a link to a folder that it lies in" in found["sub-01/ses-3"]
    assert "2 x a link to a folder, which is not followed" in caplog.text


def test_a_link_to_a_folder_of_the_archive_is_followed_where_one_is_expected(archive):
    image(archive / "kept", "sub-02_T1w")
    (archive / "sub-02").symlink_to("kept/sub-02")
    assert by_id(archive)["sub-02_T1w"]["status"] == "ok"


def test_a_folder_that_cannot_be_read_below_a_subject_is_a_row(archive, monkeypatch):
    (archive / "sub-01/ses-1/closed").mkdir()
    scandir = os.scandir

    def refusing(folder):
        if os.path.basename(folder) == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    found = strays(archive)
    assert list(found) == ["sub-01/ses-1/closed"]
    assert "cannot be read" in found["sub-01/ses-1/closed"]


def test_names_that_look_alike_keep_ids_of_their_own(archive):
    """A byte that is not UTF-8, and the four characters that it is shown as."""
    folder = archive / "sub-01/ses-1/anat"
    put(folder / r"sub-01_acq-\xff_T1w.nii")
    os.close(os.open(os.fsencode(folder) + b"/sub-01_acq-\xff_T1w.nii", os.O_CREAT))
    rows = find_images(archive)
    assert len({row["image_id"] for row in rows}) == len(rows) == 3


def test_line_breaks_in_names_break_no_line(archive, caplog):
    put(archive / "two\nlines_T1w.nii.gz")
    assert strays(archive) == {}
    assert r"two\nlines_T1w.nii.gz" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize("order", [1, -1])
def test_rows_are_the_same_in_every_order_of_the_disk(archive, order, monkeypatch):
    for stem in ("sub-03_T1w", "sub-02_T2w", "sub-02_T1w"):
        image(archive, stem)
    put(archive / "sub-02/b.mgz")
    put(archive / "sub-02/a/a.nii")
    expected = find_images(archive)
    assert [row["image_id"] for row in expected] == sorted(row["image_id"] for row in expected)
    scandir = os.scandir

    class Shuffled:
        def __init__(self, folder):
            with scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name)[::order]

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert find_images(archive) == expected


def test_names_of_images():
    assert [
        name
        for name in ("a.nii", "a.dcm", "a_T1w", "a.nii.gz.json", "anii", "a.niigz", "hdr", "a.rec.txt")
        if is_image(name)
    ] == [
        "a.nii",
        "a.dcm",
        "a_T1w",
    ]
    assert images_among(["a.hdr", "a.img", "b.dcm", "c.dcm", "d.nii", "e.txt"]) == [
        ("a.hdr", 2),
        ("b.dcm", 2),
        ("d.nii", 1),
    ]
