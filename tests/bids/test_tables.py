"""Tables are read as BIDS defines them, or damaged rows are reported: no site is silently lost or replaced."""

import csv
import os
from pathlib import Path

import pytest

from mmh_ray.bids.manifest import find_images, to_table
from mmh_ray.bids.tables import read_table
from mmh_ray.errors import DataError
from tests.bids.archive_files import POINTERS, SPECIAL, by_id, image, people, put, put_special

pytestmark = pytest.mark.fast

ELSEWHERE = {"InstitutionName": "another vocabulary"}
"""A sidecar's site, which must never stand in for that of a table."""

UNREADABLE = {
    "empty": b"",
    "blank": b"\n \t \n\n",
    "latin 1": "participant_id\tsite\nsub-01\tZürich\n".encode("latin-1"),
    "utf-16": "participant_id\tsite\nsub-01\tA\n".encode("utf-16"),
    "utf-16 without mark": "participant_id\tsite\nsub-01\tA\n".encode("utf-16-le"),
    "nul": b"participant_id\tsite\nsub-01\tA\0\n",
    "commas": b"participant_id,site\nsub-01,A\n",
    "quoted commas": b'"participant_id","site"\n"sub-01","A"\n',
    "semicolons": b"participant_id;site\nsub-01;A\n",
    "spaces": b"participant_id   site\nsub-01   A\n",
    "rows with commas": b"participant_id\tsite\nsub-01,A\nsub-02,A\n",
    "no key": b"subject\tsite\nsub-01\tA\n",
    "two keys": b"participant_id\tparticipant_id\tsite\nsub-01\tsub-02\tA\n",
    "no header": b"sub-01\tA\nsub-02\tB\n",
    "header only": b"participant_id\tsite\n",
    "a web page": b"<!DOCTYPE html>\n<html><body>Log in</body></html>\n",
    "noise": bytes(range(1, 256)),
} | {name: text.encode() for name, text in POINTERS.items()}
"""What lies in the place of a table and is none."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two subjects, each with a sidecar that names another site, and no table."""
    root = tmp_path / "bids"
    for subject in ("01", "02"):
        image(root, f"sub-{subject}_T1w")
        put(root / f"sub-{subject}/anat/sub-{subject}_T1w.json", ELSEWHERE)
    return root


@pytest.mark.parametrize("require_site", [True, False])
@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_participants_that_are_no_table_are_refused(archive, content, require_site):
    (archive / "participants.tsv").write_bytes(content)
    with pytest.raises(DataError, match=r"/bids/participants\.tsv: .*; expected .*\. [A-Z]") as caught:
        find_images(archive, require_site=require_site)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("require_site", [True, False])
@pytest.mark.parametrize("kind", SPECIAL)
def test_participants_that_are_no_regular_file_are_refused(archive, kind, require_site):
    put_special(archive / "participants.tsv", kind)
    is_outside = kind in ("zeros", "link out")
    remedy = "Copy the file to its place" if is_outside else r"Fetch its content \(datalad get participants\.tsv\)"
    with pytest.raises(DataError, match=rf"/bids/participants\.tsv: .*\. {remedy}"):
        find_images(archive, require_site=require_site)


@pytest.mark.parametrize("name", ["sub-01_ses-1_scans.tsv", "../sub-01_sessions.tsv"])
@pytest.mark.parametrize("kind", [*SPECIAL, *UNREADABLE])
def test_a_table_of_a_subject_that_cannot_be_used_costs_its_images_only(tmp_path, name, kind):
    root = tmp_path / "bids"
    people(root, "sub-01 A 30 F", "sub-02 B 30 F")
    image(root, "sub-01_ses-1_T1w")
    image(root, "sub-02_ses-1_T1w")
    path = root / "sub-01/ses-1" / name
    path = path.parent.resolve() / path.name
    if kind in UNREADABLE:
        key = b"filename" if "scans" in name else b"session_id"
        put(path, UNREADABLE[kind].replace(b"participant_id", key))
    else:
        put_special(path, kind)
    rows = by_id(root)
    if kind.startswith("utf-16"):  # the key is not found in it by replacing bytes
        assert "UTF-16" in rows["sub-01_ses-1_T1w"]["reason"]
    assert (rows["sub-01_ses-1_T1w"]["status"], rows["sub-01_ses-1_T1w"]["site"]) == ("unusable", None)
    assert path.name in rows["sub-01_ses-1_T1w"]["reason"]
    assert (rows["sub-02_ses-1_T1w"]["status"], rows["sub-02_ses-1_T1w"]["site"]) == ("ok", "B")
    assert to_table(rows.values()).num_rows == 2


@pytest.mark.parametrize("name", ["Participants.tsv", "participants.TSV", "participants.csv", "participants.xlsx"])
def test_a_table_of_another_name_is_not_passed_over(archive, name):
    put(archive / name, "participant_id\tsite\nsub-01\tA\nsub-02\tB\n")
    with pytest.raises(DataError, match=rf"{name}: a table that is not read.*expected participants\.tsv in its place"):
        find_images(archive)


def test_a_misnamed_table_beside_the_right_one_or_without_sites_costs_nothing(archive, caplog):
    put(archive / "Participants.tsv", "participant_id\tage\nsub-01\t30\n")
    assert {row["site"] for row in find_images(archive)} == {"another vocabulary"}
    assert "1 x a table that is not read, because of its name: Participants.tsv" in caplog.text
    people(archive, "sub-01 A 30 F", "sub-02 B 30 F")
    put(archive / "Participants.tsv", "participant_id\tsite\nsub-01\tZ\n")
    assert [row["site"] for row in find_images(archive)] == ["A", "B"]


@pytest.mark.parametrize("name", ["sub-1_sessions.tsv", "sessions.tsv", "sub-01_sessions.csv", "sub-01_Sessions.tsv"])
def test_a_misnamed_table_of_sessions_costs_its_subject(tmp_path, name):
    people(tmp_path, "sub-01 A 30 F", "sub-02 B 30 F")
    image(tmp_path, "sub-01_ses-1_T1w")
    image(tmp_path, "sub-02_ses-1_T1w")
    put(tmp_path / "sub-01" / name, "session_id\tsite\nses-1\tC\n")
    rows = by_id(tmp_path)
    assert rows["sub-01_ses-1_T1w"]["site"] is None
    assert f"{name}: a table that is not read" in rows["sub-01_ses-1_T1w"]["reason"]
    assert rows["sub-02_ses-1_T1w"]["site"] == "B"


def test_a_table_of_scans_above_the_session_is_told(tmp_path):
    people(tmp_path, "sub-01 A 30 F", "sub-02 B 30 F")
    for stem in ("sub-01_ses-1_T1w", "sub-02_ses-1_T1w"):
        image(tmp_path, stem)
    put(tmp_path / "sub-01/sub-01_scans.tsv", "filename\tsite\nses-1/anat/sub-01_ses-1_T1w.nii.gz\tC\n")
    rows = by_id(tmp_path)
    assert rows["sub-01_ses-1_T1w"]["site"] is None
    assert "expected sub-01_ses-1_scans.tsv in its place" in rows["sub-01_ses-1_T1w"]["reason"]
    assert rows["sub-02_ses-1_T1w"]["site"] == "B"


def test_a_cell_that_opens_a_quote_swallows_nothing(archive):
    lines = ["participant_id\tnote\tsite\tage", 'sub-01\t"moved\tA\t30', "sub-02\tn/a\tB\t40", 'sub-03\tend"\tC\t50']
    put(archive / "participants.tsv", "\n".join(lines))
    assert [(row["site"], row["age"]) for row in find_images(archive)] == [("A", 30), ("B", 40)]


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_MINIMAL])
def test_cells_in_quotes_are_taken_out_of_them(archive, quoting):
    table = [["participant_id", "site", "age"], ["sub-01", 'North "Shore"', 30], ["sub-02", "B", 40]]
    with open(archive / "participants.tsv", "w", newline="") as stream:
        csv.writer(stream, delimiter="\t", quoting=quoting).writerows(table)
    assert [(row["site"], row["age"]) for row in find_images(archive)] == [('North "Shore"', 30), ("B", 40)]


LINE_BREAKS = {
    "quoted note": ('sub-01\tA\t"moved\nhouse"\t30', None),
    "quoted site": ('sub-01\t"North\nShore"\tx\t30', None),
    "note": ("sub-01\tA\tmoved\nhouse\t30", None),
    "last cell": ('sub-01\tA\tx\t"30\nor 31"', None),
    "last cell without quotes": ("sub-01\tA\tx\t30\nor 31", None),
    "two line breaks": ('sub-01\tA\tx\t"30\n\nor 31\nor 32"', None),
    "short": ("sub-01\tA\tx", None),
    "short without quotes": ("sub-01\t30", None),
    "long": ("sub-01\tA\tx\t30\tmore", None),
    "half a quote in the site": ('sub-01\t"A\tx\t30', None),
    "spaces": ("sub-01 A x 30", None),
}


@pytest.mark.parametrize(("row", "expected"), LINE_BREAKS.values(), ids=LINE_BREAKS)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_damaged_row_costs_its_subject_and_is_told(archive, row, expected, ending, caplog):
    lines = ["participant_id\tsite\tnote\tage", "sub-02\tB\tx\t40", *row.split("\n"), "sub-03\tC\tx\t50"]
    put(archive / "participants.tsv", ending.join(lines))
    rows = by_id(archive)
    assert (rows["sub-01_T1w"]["site"], rows["sub-01_T1w"]["age"]) == (expected, None)
    assert rows["sub-01_T1w"]["status"] == "unusable"
    assert "participants.tsv" in rows["sub-01_T1w"]["reason"]
    assert (rows["sub-02_T1w"]["site"], rows["sub-02_T1w"]["age"], rows["sub-02_T1w"]["status"]) == ("B", 40, "ok")
    assert "a row of a table that cannot be used" in caplog.text
    assert {row["site"] for row in find_images(archive, require_site=False)} == {None, "B"}


def test_a_last_cell_of_the_site_cut_by_a_line_break_is_no_site(archive):
    put(archive / "participants.tsv", "participant_id\tage\tsite\nsub-01\t30\tNorth\nShore\nsub-02\t40\tB\n")
    assert [row["site"] for row in find_images(archive)] == [None, "B"]


@pytest.mark.parametrize(
    "text",
    [
        "participant_id\tsite\tage\r\nsub-01\tA\t30\r\nsub-02\tB\t40\r\n",
        "participant_id\tsite\tage\rsub-01\tA\t30\rsub-02\tB\t40",
        "\ufeffparticipant_id\tsite\tage\nsub-01\tA\t30\nsub-02\tB\t40\n",
        "participant_id\tsite\tage\t\t\nsub-01\tA\t30\t\t\nsub-02\tB\t40\t\n",
        "\n\nparticipant_id\tsite\tage\n\nsub-01\tA\t30\n\t\t\nsub-02\tB\t40\n\n\n",
        " Participant_ID \tSITE\tAge\n sub-01 \t A \t 30 \nsub-02\tB\t40 \n",
        "site\tage\tparticipant_id\nA\t30\tsub-01\nB\t40\tsub-02\n",
        "participant_id\tnote\tsite\tage\nsub-01\ta\u2028b\x0cc\x85d\tA\t30\nsub-02\t\tB\t40\n",
        "participant_id\tsite\tage\n01\tA\t30\n./02\tB\t40\n",
        "participant_id\tsite\tage\nsub-01\tA\t30\nsub-02\tB\t40\nsub-01\tA\t30\n",
        "participant_id\tsite\tsite\tage\nsub-01\tA\tA\t30\nsub-02\tB\tB\t40\n",
        "participant_id\tsite\tage\tnote\tnote\nsub-01\tA\t30\tx\ty\nsub-02\tB\t40\tx\ty\n",
        "participant_id\tsite_id\tage\nsub-01\tA\t30\nsub-02\tB\t40\n",
        "participant_id\tsite\tsite_id\tage\nsub-01\tA\t1\t30\nsub-02\tB\t2\t40\n",
        "participant_id\tsite\tsite_id\tage\nsub-01\tn/a\tA\t30\nsub-02\tNA\tB\t40\n",
    ],
)
def test_good_tables_are_read_in_all_their_forms(archive, text, caplog):
    put(archive / "participants.tsv", text)
    rows = find_images(archive)
    assert [(row["site"], row["age"], row["status"]) for row in rows] == [("A", 30, "ok"), ("B", 40, "ok")]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ("30", 30),
        ("30.5", 30.5),
        ("89+", 89),
        ("0", 0),
        ("999", None),
        ("-1", None),
        ("1_0", None),
        ("٣٠", None),
        ("inf", None),
        ("1e400", None),
        ("9" * 401, None),
        ("30Y", None),
        ("n/a", None),
        ("\x1b[2J30", None),
    ],
)
def test_an_age_is_a_number_of_years_or_unknown(tmp_path, age, expected):
    image(tmp_path, "sub-01_T1w")
    put(tmp_path / "participants.tsv", f"participant_id\tsite\tage\nsub-01\tA\t{age}\n")
    assert find_images(tmp_path)[0]["age"] == expected


def test_an_age_that_is_a_code_is_told(tmp_path, caplog):
    people(tmp_path, "sub-01 A 999 F")
    image(tmp_path, "sub-01_T1w")
    assert find_images(tmp_path)[0]["age"] is None
    assert "1 x an age beyond 130 years, left out: sub-01/anat/sub-01_T1w.nii.gz (999)" in caplog.text


def test_a_site_that_is_no_name_is_none(tmp_path):
    image(tmp_path, "sub-01_T1w")
    image(tmp_path, "sub-02_T1w")
    put(tmp_path / "participants.tsv", f"participant_id\tsite\nsub-01\t{'x' * 100_000}\nsub-02\tB\n")
    row = by_id(tmp_path)["sub-01_T1w"]
    assert (row["site"], row["status"]) == (None, "unusable")
    assert len(row["reason"]) < 2000


MANY = {
    "columns": ("participant_id\tsite" + "\tx" * 1_000_000 + "\nsub-01\tA" + "\t1" * 1_000_000, "A"),
    "cells": ("participant_id\tsite\nsub-02\tB\nsub-01\tA" + "\tx" * 1_000_000, None),
    "tabs": ("participant_id\tsite\nsub-01\tA" + "\t" * 1_000_000, "A"),
    "quotes": ("participant_id\tsite\nsub-02\tB\nsub-01\t" + '"' * 1_000_000, None),
    "rows about one": ("participant_id\tsite\n" + "".join(f"sub-01\t{n}\n" for n in range(30_000)), None),
    "blank lines": ("participant_id\tsite\n" + "\n" * 500_000 + "sub-01\tA", "A"),
    "other columns": ("x\t" * 1_000_000, DataError),
    "too many columns": ("\t" * 2_000_000 + "participant_id\nsub-01", DataError),
    "damaged rows": ("participant_id\tsite\nsub-01\tA\n" + "x\n" * 30_000, DataError),
}


def test_a_table_whose_rows_mostly_do_not_fit_its_header_is_in_doubt(archive):
    """The line break after the header is lost; rows that fit by chance have their cells in wrong columns."""
    lines = ["participant_id\tnote\tsite\t01\tA", "sub-02\tx\tB", "sub-03\tx\tB", "sub-04\t\t\tC\t50"]
    put(archive / "participants.tsv", "\n".join(lines))
    with pytest.raises(DataError, match="most rows do not fit the header"):
        find_images(archive)


@pytest.mark.parametrize(("text", "expected"), MANY.values(), ids=MANY)
def test_a_million_of_anything_is_read_or_refused(tmp_path, text, expected):
    path = put(tmp_path / "participants.tsv", text)
    if expected is DataError:
        with pytest.raises(DataError) as caught:
            read_table(path, "participant_id", tmp_path)
        assert len(str(caught.value)) < 2000
        return
    table = read_table(path, "participant_id", tmp_path)
    assert table.values("sub-01").get("site") == expected
    assert len(table.why_no_site("sub-01")) < 2000


def test_a_table_beyond_all_bounds_is_refused_unread(tmp_path):
    path = put(tmp_path / "participants.tsv", "participant_id\tsite\nsub-01\tA\n")
    os.truncate(path, 2**40)
    with pytest.raises(DataError, match="larger than"):
        read_table(path, "participant_id", tmp_path)
