"""Tables and sidecars of archives from strangers."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import strategies as st

from mmh_ray.bids.manifest import find_images, to_table
from tests.bids.archive_files import image, put
from tests.fuzz.conftest import Guard
from tests.fuzz.mutations import TEXTS, Edit, as_json, as_table, byte_edits, edited, fuzz, reshaped, tree_edits

pytestmark = pytest.mark.slow

CELLS = ("", "n/a", "sub-1", "sub-2", "1", "01", "north", '"', '"north', "-1", "1e9", "nan", "89+", "NaN", "m", *TEXTS)
PIECES = (
    b"\t",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b'"',
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\t" * 3000,
    b"\n" * 3000,
)
TABLES = {
    "participants.tsv": [
        ["participant_id", "site", "age", "sex", "group"],
        ["sub-1", "north", "30", "F", "control"],
        ["sub-2", "south", "41.5", "M", "patient"],
    ],
    "sub-1/sub-1_sessions.tsv": [
        ["session_id", "site", "age", "acq_time"],
        ["ses-a", "north", "30", "2001-02-03T04:05:06"],
        ["ses-b", "south", "31", "n/a"],
    ],
    "sub-1/ses-a/sub-1_ses-a_scans.tsv": [
        ["filename", "site", "acq_time"],
        ["anat/sub-1_ses-a_T1w.nii.gz", "north", "2001-02-03T04:05:06"],
        ["anat/sub-1_ses-a_T2w.nii.gz", "north", "2001-02-03"],
    ],
}
SIDECAR = {
    "Manufacturer": "Siemens",
    "ManufacturersModelName": "Prisma",
    "MagneticFieldStrength": 3,
    "InstitutionName": "North",
    "DeviceSerialNumber": "4711",
    "StationName": "MR1",
    "RepetitionTime": 2.3,
    "ImageType": ["ORIGINAL", "PRIMARY"],
}
SIDECARS = ("T1w.json", "sub-1/ses-a/anat/sub-1_ses-a_T1w.json", "participants.json", "dataset_description.json")
DESCRIBED = {
    "Name": "an archive",
    "BIDSVersion": "1.10.0",
    "age": {"Units": "years", "Levels": {"1": "one"}},
    "sex": {"Levels": {"F": "female", "M": "male"}},
}


@pytest.fixture(scope="module")
def archive(guard: Guard) -> Guard:
    """A guard in whose folder lies an archive of two people."""
    for stem in ("sub-1_ses-a_T1w", "sub-1_ses-a_T2w", "sub-1_ses-b_T1w", "sub-2_T1w"):
        image(guard.folder, stem)
    for name, rows in TABLES.items():
        put(guard.folder / name, as_table(rows))
    for name in SIDECARS:
        put(guard.folder / name, good_sidecar(name))
    return guard


def good_sidecar(name: str) -> dict[str, Any]:
    return SIDECAR if name.endswith("T1w.json") else DESCRIBED


def check_rows(guard: Guard, require_site: bool) -> None:
    """Every image is a row, with a reason if it cannot be used, and the manifest takes it."""
    rows = find_images(guard.folder, require_site=require_site)
    assert len(rows) == 4
    assert all(row["reason"] for row in rows if row["status"] != "ok")
    to_table(rows)


def read_archive(guard: Guard, name: str, content: bytes, good: bytes) -> None:
    """Read the archive with other content in one file, which is then put right."""
    path = guard.folder / name
    path.write_bytes(content)
    try:
        guard(lambda: check_rows(guard, True), lambda: check_rows(guard, False))
    finally:
        path.write_bytes(good)


@fuzz(name=st.sampled_from(sorted(TABLES)), edits=tree_edits(CELLS), more=byte_edits(PIECES))
def test_tables(archive: Guard, name: str, edits: list[Edit], more: list[Edit]) -> None:
    rows = reshaped(copy.deepcopy(TABLES[name]), edits)
    read_archive(archive, name, edited(as_table(rows), more), as_table(TABLES[name]))


@fuzz(name=st.sampled_from(SIDECARS), edits=tree_edits(), more=byte_edits((b"\\ud800", b"NaN", b"{", b"[" * 9000), 1))
def test_sidecars(archive: Guard, name: str, edits: list[Edit], more: list[Edit]) -> None:
    good = good_sidecar(name)
    fields = reshaped(copy.deepcopy(good), edits)
    read_archive(archive, name, edited(as_json(fields), more), json.dumps(good).encode())
