"""JSON sidecars: no content makes the archive fail, and an unreadable one is never silently replaced by another."""

import json
from pathlib import Path

import pytest

from mmh_ray.bids.manifest import find_images, to_table
from tests.bids.archive_files import POINTERS, SPECIAL, by_id, image, people, put, put_special

pytestmark = pytest.mark.fast

KEYS = ("Site", "InstitutionName", "Manufacturer", "MagneticFieldStrength")
VALUES = {
    "401 digits": "9" * 401,
    "minus 401 digits": "-" + "9" * 401,
    "5000 digits": "9" * 5000,
    "401 digits as text": json.dumps("9" * 401),
    "exponent": "1e999",
    "tiny": "1e-999",
    "NaN": "NaN",
    "infinity": "-Infinity",
    "true": "true",
    "null": "null",
    "list": "[3]",
    "numbers": json.dumps(list(range(1000))),
    "object": '{"value": 3}',
    "nested": '{"a": [{"b": [[{}]]}]}',
    "too deep": "[" * 100_000 + "]" * 100_000,
    "lone surrogate": '"\\ud800"',
    "surrogate pair": '"\\ud83e\\udde0"',
    "NUL": '"A\\u0000B"',
    "line break": '"A\\nB"',
    "escape": '"\\u001b[2J"',
    "empty": '""',
    "long": json.dumps("x" * 1_000_000),
    "underscore": '"1_5"',
    "other digits": '"\u0663"',
    "unit": '"3T"',
    "gauss": "15000",
}
CONTENTS = {
    "empty": b"",
    "text": b"Site: A",
    "list": b"[1]",
    "null": b"null",
    "number": b"3",
    "cut": b'{"Site": "A"',
    "latin 1": '{"Site": "Zürich"}'.encode("latin-1"),
    "NUL": b'{"Site": "A"\0}',
    "deep": b'{"a": ' * 50_000,
    "binary": bytes(range(256)),
    "two sites": b'{"Site": "A", "Site": "B"}',
} | {name: text.encode() for name, text in POINTERS.items()}
"""What is no sidecar."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two subjects with their site in a common sidecar; the test adds a separate sidecar for the first."""
    root = tmp_path / "bids"
    put(root / "T1w.json", {"Site": "of all", "InstitutionName": "of all", "Manufacturer": "M"})
    for subject in ("01", "02"):
        image(root, f"sub-{subject}_T1w")
    return root


def own(root: Path) -> Path:
    """Path of the first subject's sidecar."""
    return root / "sub-01/anat/sub-01_T1w.json"


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("key", KEYS)
def test_no_value_ends_the_archive(archive, key, value):
    put(own(archive), f'{{"{key}": {value}}}')
    rows = by_id(archive)
    assert (rows["sub-02_T1w"]["status"], rows["sub-02_T1w"]["site"]) == ("ok", "of all")
    row = rows["sub-01_T1w"]
    assert row["site"] is None or (row["site"].isprintable() and len(row["site"]) <= 200)
    assert row["field_strength_t"] is None or 0 <= row["field_strength_t"] <= 30
    assert to_table(rows.values()).num_rows == 2
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("require_site", [True, False])
def test_a_sidecar_that_cannot_be_read_leaves_its_image_without_a_site(archive, content, require_site, caplog):
    """It may have given another site than the sidecar of all."""
    put(own(archive), content)
    rows = by_id(archive, require_site=require_site)
    assert (rows["sub-02_T1w"]["status"], rows["sub-02_T1w"]["site"]) == ("ok", "of all")
    row = rows["sub-01_T1w"]
    assert (row["site"], row["manufacturer"]) == (None, None)
    assert row["status"] == ("unusable" if require_site else "ok")
    assert not require_site or f"no site ({own(archive)} cannot be read)" in row["reason"]
    assert f"{own(archive)} is left out: " in caplog.text


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_sidecar_that_is_no_regular_file_is_not_opened(archive, kind, caplog):
    put_special(own(archive), kind)
    rows = by_id(archive)
    assert [row["site"] for row in rows.values()] == [None, "of all"]
    assert f"{own(archive)} is left out: " in caplog.text


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_sites_from_tables_need_no_sidecar(archive, content):
    people(archive, "sub-01 A 30 F", "sub-02 B 30 F")
    put(own(archive), content)
    assert [(row["site"], row["status"]) for row in find_images(archive)] == [("A", "ok"), ("B", "ok")]


def test_a_nearer_sidecar_goes_before_one_that_cannot_be_read(archive):
    put(archive / "T1w.json", "{")
    put(own(archive), {"Site": "own"})
    put(archive / "sub-02/anat/sub-02_T1w.json", {"InstitutionName": "own"})  # the other may have held a Site
    assert [row["site"] for row in find_images(archive)] == ["own", None]


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"Site": "Z\xc3\xbcrich"}',
        '{"Site": "Zürich"}'.encode("utf-16"),
        b'{\r\n"Site": "Z\\u00fcrich"\r\n}',
        b'{"Site": "Z\\u00fcrich", "Site": "Z\\u00fcrich", "EchoTime": 1, "EchoTime": 2}',
    ],
)
def test_good_sidecars_are_read_in_all_their_forms(archive, content):
    put(own(archive), content)
    assert by_id(archive)["sub-01_T1w"]["site"] == "Zürich"


def test_a_sidecar_of_no_image_is_not_read(archive, caplog):
    put(archive / "T2w.json", "{")
    put(archive / "sub-01/anat/sub-01_acq-x_T1w.json", "{")
    put_special(archive / "dataset_description.json", "pipe")
    assert {row["site"] for row in find_images(archive)} == {"of all"}
    assert caplog.messages == []


def test_many_sidecars_that_cannot_be_read_are_one_line(tmp_path, caplog):
    for number in range(10, 40):
        image(tmp_path, f"sub-{number}_T1w")
        put(tmp_path / f"sub-{number}/anat/sub-{number}_T1w.json", "{")
    find_images(tmp_path, require_site=False)
    [line] = [message for message in caplog.messages if "cannot be read: /" in message and "JSON sidecar" in message]
    assert line.startswith("30 x ")
    assert line.endswith("and 25 more")


def test_sites_of_several_sources_are_told(archive, caplog):
    put(archive / "T1w.json", {"Site": "A"})
    image(archive, "sub-03_T2w")
    put(archive / "sub-03/anat/sub-03_T2w.json", {"InstitutionName": "Hospital"})
    find_images(archive)
    mixed = "a site from InstitutionName in sidecars, where most are from Site in sidecars"
    assert f"1 x {mixed}: sub-03/anat/sub-03_T2w.nii.gz (Hospital)" in caplog.text
