"""Sites: similar ids are named but never used, and a gap in a table is not filled from less specific sources."""

from pathlib import Path

import pytest

from mmh_ray.bids.manifest import find_images
from mmh_ray.errors import DataError
from tests.bids.archive_files import by_id, image, people, put

pytestmark = pytest.mark.fast

ELSEWHERE = {"InstitutionName": "another vocabulary"}
"""A sidecar's site, which must never stand in for that of a table."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two subjects, each with a sidecar that names another site, and no table."""
    root = tmp_path / "bids"
    for subject in ("01", "02"):
        image(root, f"sub-{subject}_T1w")
        put(root / f"sub-{subject}/anat/sub-{subject}_T1w.json", ELSEWHERE)
    return root


NEAR = {
    "0050772": "50772",
    "001": "1",
    "01": "sub-1",
    "02": "Sub-02",
    "03": "sub_03",
    "04": "SUB-4",
    "05": "sub 05",
    "control01": "sub-Control-01",
    "AB": "ab",
}
"""Folder of a subject to the id that a table has for it."""


@pytest.mark.parametrize(("label", "given"), NEAR.items())
@pytest.mark.parametrize("others", [True, False])
def test_ids_that_almost_match_are_named_and_never_taken(tmp_path, label, given, others, caplog):
    image(tmp_path, f"sub-{label}_T1w")
    put(tmp_path / f"sub-{label}/anat/sub-{label}_T1w.json", ELSEWHERE)
    table = f"participant_id\tsite\n{given}\tA\n"
    if others:
        image(tmp_path, "sub-other_T1w")
        table += "sub-other\tB\n"
    put(tmp_path / "participants.tsv", table)
    named = f"participants.tsv has no row for sub-{label}, but for {given}, which may be meant"
    if others:
        row = by_id(tmp_path)[f"sub-{label}_T1w"]
        assert (row["status"], row["site"]) == ("unusable", None)
        assert named in row["reason"]
    else:
        with pytest.raises(DataError, match="none of 1 images has a site") as caught:
            find_images(tmp_path)
        assert named in str(caught.value)
    assert named in caplog.text
    row = by_id(tmp_path, require_site=False)[f"sub-{label}_T1w"]
    assert (row["status"], row["site"]) == ("ok", None)


def test_two_subjects_that_one_id_may_mean_are_both_told(tmp_path):
    for label in ("1", "01", "good"):
        image(tmp_path, f"sub-{label}_T1w")
    put(tmp_path / "participants.tsv", "participant_id\tsite\n001\tA\ngood\tB\n")
    rows = by_id(tmp_path)
    assert all("but for 001, which may be meant" in rows[f"sub-{label}_T1w"]["reason"] for label in ("1", "01"))
    assert rows["sub-good_T1w"]["site"] == "B"


def test_ids_are_named_up_to_a_bound(tmp_path, caplog):
    for number in range(1, 31):
        image(tmp_path, f"sub-{number:04d}_T1w")
    put(tmp_path / "participants.tsv", "participant_id\tsite\n" + "".join(f"{n}\tA\n" for n in range(1, 31)))
    with pytest.raises(DataError, match=r"no row for sub-0001, but for 1,.* and 25 more") as caught:
        find_images(tmp_path)
    assert len(str(caught.value)) < 2000
    assert "30 x an image whose site is unclear" in caplog.text
    assert "and 25 more" in caplog.text


def test_a_subject_that_a_table_with_sites_lacks_gets_none_from_elsewhere(archive):
    people(archive, "sub-01 A 30 F")
    rows = by_id(archive)
    assert rows["sub-01_T1w"]["site"] == "A"
    assert (rows["sub-02_T1w"]["status"], rows["sub-02_T1w"]["site"]) == ("unusable", None)
    assert "no site (participants.tsv has no row for sub-02)" in rows["sub-02_T1w"]["reason"]


@pytest.mark.parametrize("empty", ["n/a", "NA", "NaN", "None", "null", "", " "])
def test_an_empty_cell_of_a_table_with_sites_is_not_filled_from_elsewhere(archive, empty):
    put(archive / "participants.tsv", f"participant_id\tsite\tage\nsub-01\tA\t30\nsub-02\t{empty}\t40\n")
    row = by_id(archive)["sub-02_T1w"]
    assert (row["status"], row["site"], row["age"]) == ("unusable", None, 40)
    assert "participants.tsv gives sub-02 no site" in row["reason"]


@pytest.mark.parametrize("column", ["note", "site"])
def test_a_table_without_any_site_leaves_it_to_the_sidecars(archive, column, caplog):
    put(archive / "participants.tsv", f"participant_id\t{column}\tage\nsub-01\tn/a\t30\nsub_02\tn/a\t40\n")
    rows = by_id(archive)
    assert {row["site"] for row in rows.values()} == {"another vocabulary"}
    assert rows["sub-02_T1w"]["age"] is None
    assert "1 x a subject without a row in participants.tsv: sub-02, but for sub_02, which may be meant" in caplog.text


def test_a_table_without_its_key_and_without_sites_costs_nothing(tmp_path, caplog):
    """Such as the tables of sessions in archives older than the rule of BIDS for them."""
    people(tmp_path, "sub-01 A 30 F")
    image(tmp_path, "sub-01_ses-1_T1w")
    put(tmp_path / "sub-01/sub-01_sessions.tsv", "session\tscore\nses-1\t3\n")
    assert by_id(tmp_path)["sub-01_ses-1_T1w"]["site"] == "A"
    unread = "1 x a table that is not read, because it has no column session_id: sub-01/sub-01_sessions.tsv"
    assert caplog.messages == [unread]


def test_the_pattern_that_a_user_gives_fills_what_tables_leave_open(archive, caplog):
    people(archive, "sub-01 A 30 F")
    rows = by_id(archive, site_pattern="sub-0(?P<site>2)/")
    assert [row["site"] for row in rows.values()] == ["A", "2"]
    mixed = "1 x a site from manifest.site_pattern, where most are from tables: sub-02/anat/sub-02_T1w.nii.gz (2)"
    assert mixed in caplog.text


def test_an_empty_site_beside_a_damaged_row_is_no_site(archive):
    """The column of the damaged value is unknown; good rows with an empty cell are still read."""
    put(archive / "participants.tsv", "participant_id\tsite\nsub-01\t\nsub-02\n")
    rows = by_id(archive, require_site=False)
    assert rows["sub-01_T1w"]["site"] is None
    assert rows["sub-02_T1w"]["site"] is None


def test_a_subject_with_two_sites_is_named_with_both(archive, caplog):
    people(archive, "sub-01 A 30 F", "sub-01 B 31 F", "sub-02 B 40 F")
    row = by_id(archive)["sub-01_T1w"]
    assert (row["status"], row["site"], row["age"], row["sex"]) == ("unusable", None, None, "F")
    assert "participants.tsv gives sub-01 more than one site: A, B" in row["reason"]
    assert "participants.tsv: sub-01 (site: A, B; age: 30, 31)" in caplog.text


def test_two_columns_of_sites_that_differ_are_two_sites(archive):
    put(archive / "participants.tsv", "participant_id\tsite\tSite\nsub-01\tA\tB\nsub-02\tC\tC\n")
    rows = by_id(archive)
    assert [row["site"] for row in rows.values()] == [None, "C"]
    assert "more than one site: A, B" in rows["sub-01_T1w"]["reason"]


def test_a_session_that_its_table_lacks_does_not_get_the_subjects_site(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    for session in ("1", "02", "3"):
        image(tmp_path, f"sub-01_ses-{session}_T1w")
    put(tmp_path / "sub-01/sub-01_sessions.tsv", "session_id\tsite\nses-1\tB\nses-2\tC\nses-3\tn/a\n")
    rows = by_id(tmp_path)
    assert [rows[f"sub-01_ses-{session}_T1w"]["site"] for session in ("1", "02", "3")] == ["B", None, "A"]
    missing = "sub-01/sub-01_sessions.tsv has no row for ses-02, but for ses-2, which may be meant"
    assert missing in rows["sub-01_ses-02_T1w"]["reason"]


@pytest.mark.parametrize("given", ["sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz", "anat\\sub-01_T1w.nii.gz"])
def test_a_file_that_the_table_of_scans_calls_otherwise_is_told(tmp_path, given):
    people(tmp_path, "sub-01 A 30 F", "sub-02 B 30 F")
    image(tmp_path, "sub-01_T1w")
    image(tmp_path, "sub-02_T1w")
    put(tmp_path / "sub-01/sub-01_scans.tsv", f"filename\tsite\n{given}\tC\n")
    rows = by_id(tmp_path)
    assert rows["sub-01_T1w"]["site"] is None
    assert f"but for {given}, which may be meant" in rows["sub-01_T1w"]["reason"]
    assert rows["sub-02_T1w"]["site"] == "B"


def test_sessions_of_an_archive_without_sessions_are_not_asked(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    image(tmp_path, "sub-01_T1w")
    put(tmp_path / "sub-01/sub-01_sessions.tsv", "session_id\tsite\nses-1\tB\n")
    assert by_id(tmp_path)["sub-01_T1w"]["site"] == "A"


def test_one_site_has_one_name_however_it_was_typed(tmp_path, caplog):
    for number in range(1, 5):
        image(tmp_path, f"sub-0{number}_T1w")
    sites = ["Zu\u0308rich", "Z\u00fcrich", "Oslo 1", "oslo-1"]
    lines = [f"sub-0{number}\t{site}" for number, site in enumerate(sites, 1)]
    put(tmp_path / "participants.tsv", "\n".join(["participant_id\tsite", *lines]))
    assert [row["site"] for row in find_images(tmp_path)] == ["Z\u00fcrich", "Z\u00fcrich", "Oslo 1", "oslo-1"]
    assert "1 x sites whose names differ only in case, spaces or punctuation: Oslo 1 / oslo-1" in caplog.text
