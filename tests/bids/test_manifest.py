"""The manifest: facts from the right sources, a reason for every unusable file, reproducible splits."""

import os
import random
from collections import Counter, defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmh_ray.bids.manifest import find_images, read_manifest, to_table, write_manifest
from mmh_ray.bids.schema import SCHEMA
from mmh_ray.bids.splits import assign_splits
from mmh_ray.config import ManifestConfig
from mmh_ray.errors import ConfigError, DataError
from tests.bids.archive_files import SPECIAL, by_id, image, people, put, put_special

pytestmark = pytest.mark.fast


def test_facts_of_a_plain_archive(tmp_path):
    people(tmp_path, "sub-01 A 30 F", "02 B 89+ male", "sub-03 C n/a n/a")
    for stem in ("sub-01_ses-1_T1w", "sub-02_T2w", "sub-03_FLAIR"):
        image(tmp_path, stem)
    put(tmp_path / "sub-01/ses-1/anat/sub-01_ses-1_T1w.json", {"Manufacturer": "GE", "MagneticFieldStrength": "1.5"})
    rows = find_images(tmp_path)
    assert [row["image_id"] for row in rows] == ["sub-01_ses-1_T1w", "sub-02_T2w", "sub-03_FLAIR"]
    first, second, third = rows
    assert list(first) == SCHEMA.names
    assert first["uri"] == str(tmp_path / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    assert (first["subject"], first["session"], first["sequence"]) == ("01", "1", "T1w")
    assert (first["site"], first["age"], first["sex"]) == ("A", 30.0, "F")
    assert (first["manufacturer"], first["field_strength_t"]) == ("GE", 1.5)
    assert (second["session"], second["site"], second["age"], second["sex"]) == (None, "B", 89.0, "M")
    assert (third["site"], third["age"], third["sex"]) == ("C", None, None)
    assert {row["status"] for row in rows} == {"ok"}


def test_site_from_the_most_specific_table(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    for session in "123":
        image(tmp_path, f"sub-01_ses-{session}_T1w")
    put(tmp_path / "sub-01/sub-01_sessions.tsv", "session_id\tSite\tage\nses-2\tB\t31\nses-3\tB\t32\nses-1\tn/a\tn/a\n")
    put(tmp_path / "sub-01/ses-3/sub-01_ses-3_scans.tsv", "filename\tsite\nanat/sub-01_ses-3_T1w.nii.gz\tC\n")
    put(tmp_path / "sub-01/ses-3/anat/sub-01_ses-3_T1w.json", {"Site": "not this one"})
    assert [(row["site"], row["age"]) for row in find_images(tmp_path)] == [("A", 30), ("B", 31), ("C", 32)]


def test_site_from_sidecars_by_inheritance(tmp_path):
    for stem in ("sub-01_T1w", "sub-01_acq-x_T1w", "sub-01_T2w", "sub-02_T1w", "sub-03_T2w"):
        image(tmp_path, stem)
    put(tmp_path / "T1w.json", {"InstitutionName": "Root", "Manufacturer": "M"})
    put(tmp_path / "acq-x_T1w.json", {"InstitutionName": "Root x"})
    put(tmp_path / "sub-01/sub-01_T2w.json", {"Site": 7})
    put(tmp_path / "sub-02/anat/sub-02_T1w.json", {"Site": "Own"})
    rows = by_id(tmp_path, site_pattern="(?P<site>sub-03)/")
    sites = {key: row["site"] for key, row in rows.items()}
    assert sites["sub-01_T1w"] == "Root"
    assert sites["sub-01_acq-x_T1w"] == "Root x"
    assert sites["sub-01_T2w"] == "7"
    assert (sites["sub-02_T1w"], rows["sub-02_T1w"]["manufacturer"]) == ("Own", "M")
    assert sites["sub-03_T2w"] == "sub-03"


def test_damaged_sidecars_cost_only_their_content(tmp_path, caplog):
    people(tmp_path, "sub-01 A 30 F")
    image(tmp_path, "sub-01_T1w")
    put(tmp_path / "sub-01/anat/sub-01_T1w.json", "{")
    put(tmp_path / "T1w.json", "[1]")
    assert find_images(tmp_path)[0]["status"] == "ok"
    assert "sub-01_T1w.json is left out" in caplog.text


def test_missing_site_says_how_to_give_one(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    image(tmp_path, "sub-01_T1w")
    image(tmp_path, "sub-02_T1w")
    row = by_id(tmp_path)["sub-02_T1w"]
    assert row["status"] == "unusable"
    assert "participants.tsv" in row["reason"]
    assert "site_pattern" in row["reason"]


def test_an_archive_without_any_site_or_image_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        find_images(tmp_path / "absent")
    with pytest.raises(DataError, match="no image"):
        find_images(tmp_path)
    image(tmp_path, "sub-01_T1w")
    with pytest.raises(DataError, match="none of 1 images has a site"):
        find_images(tmp_path)


@pytest.mark.parametrize("pattern", ["(", "sub-([a-z]+)"])
def test_a_pattern_without_a_site_is_refused(tmp_path, pattern):
    with pytest.raises(ConfigError, match="site_pattern"):
        find_images(tmp_path, site_pattern=pattern)


def test_a_subject_listed_twice_with_two_sites_has_neither(tmp_path):
    people(tmp_path, "sub-01 A 30 F", "sub-01 B 30 F", "sub-02 A 20 M")
    image(tmp_path, "sub-01_T1w")
    image(tmp_path, "sub-02_T1w")
    row = by_id(tmp_path)["sub-01_T1w"]
    assert (row["status"], row["site"], row["age"]) == ("unusable", None, 30.0)


@pytest.mark.parametrize("content", [b"subject\tsite\n01\tA\n", b"participant_id\tsite\nsub-01\t\xff\n"])
def test_a_damaged_participants_table_is_refused(tmp_path, content):
    image(tmp_path, "sub-01_T1w")
    (tmp_path / "participants.tsv").write_bytes(content)
    with pytest.raises(DataError, match=r"participants\.tsv"):
        find_images(tmp_path)


def test_a_damaged_sessions_table_costs_only_its_subject(tmp_path):
    people(tmp_path, "sub-01 A 30 F", "sub-02 A 20 M")
    image(tmp_path, "sub-01_ses-1_T1w")
    image(tmp_path, "sub-02_ses-1_T1w")
    put(tmp_path / "sub-01/sub-01_sessions.tsv", "wrong\n1\n")
    rows = by_id(tmp_path)
    assert rows["sub-01_ses-1_T1w"]["status"] == "unusable"
    assert "sessions.tsv" in rows["sub-01_ses-1_T1w"]["reason"]
    assert rows["sub-02_ses-1_T1w"]["status"] == "ok"


def test_bad_names_keep_their_row(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    good = image(tmp_path, "sub-01_T1w")
    for name in ("sub-01_T1w copy.nii.gz", "sub-é_T1w.nii", "scan.nii", "sub-01_T2w.NII.GZ", "sub-02_T1w.nii.gz"):
        put(good.with_name(name))
    os.close(os.open(os.fsencode(good.parent) + b"/sub-\xff_T1w.nii", os.O_CREAT))
    put(good.with_name("._sub-01_T1w.nii.gz"))  # hidden: not an image
    put(good.with_name("notes.txt"))
    put(tmp_path / "sub-02/anat/sub-02_T1w.nii.gz")  # the true place of the misplaced one
    people(tmp_path, "sub-01 A 30 F", "sub-02 B 30 F")
    rows = by_id(tmp_path)
    assert {key for key, row in rows.items() if row["status"] == "ok"} == {"sub-01_T1w", "sub-02_T1w"}
    assert len(rows) == 8
    assert rows["sub-01/anat/sub-01_T1w copy.nii.gz"]["reason"]
    assert "as its name says" in rows["sub-01/anat/sub-02_T1w.nii.gz"]["reason"]
    assert to_table(rows.values()).num_rows == 8  # every name can be stored


def test_names_that_are_not_utf_8_are_told_apart_and_can_be_stored(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    good = image(tmp_path, "sub-01_T1w")
    for name in (b"sub-01_acq-\xff_T1w.nii", b"sub-01_acq-\xfe_T1w.nii"):
        os.close(os.open(os.fsencode(good.parent) + b"/" + name, os.O_CREAT))
    os.symlink("absent", os.fsencode(tmp_path) + b"/sub-\xff")
    rows = find_images(tmp_path)
    assert [row["image_id"] for row in rows] == [
        r"sub-01/anat/sub-01_acq-\xfe_T1w.nii",
        r"sub-01/anat/sub-01_acq-\xff_T1w.nii",
        "sub-01_T1w",
        r"sub-\xff",
    ]
    assert r"sub-\xff: a broken link" in rows[-1]["reason"]
    assert to_table(rows).num_rows == 4


def test_subjects_without_an_image_are_warned_of(tmp_path, caplog):
    people(tmp_path, "sub-01 A 30 F")
    image(tmp_path, "sub-01_T1w")
    for number in range(2, 9):
        put(tmp_path / f"sub-0{number}/ses-1/func/sub-0{number}_ses-1_bold.nii.gz")
    assert list(by_id(tmp_path)) == ["sub-01_T1w"]
    named = "sub-02, sub-03, sub-04, sub-05, sub-06 and 2 more"
    assert caplog.messages == [f"7 x no image in sub-*/[ses-*/]anat/ of a subject: {named}"]


def test_duplicates_links_and_odd_files(tmp_path):
    root, outside = tmp_path / "bids", put(tmp_path / "outside.nii.gz")
    people(root, *(f"sub-{number:02d} A 30 F" for number in range(1, 7)))
    first = image(root, "sub-01_T1w").rename(root / "sub-01/anat/sub-01_T1w.nii")
    image(root, "sub-01_T1w")
    for stem in ("sub-02_T1w", "sub-03_T1w", "sub-04_T1w"):
        image(root, stem).unlink()
    (root / "sub-02/anat/sub-02_T1w.nii.gz").symlink_to(outside)
    (root / "sub-03/anat/sub-03_T1w.nii.gz").symlink_to(".git/annex/absent")
    (root / "sub-04/anat/sub-04_T1w.nii.gz").mkdir()
    image(root, "sub-05_T1w").unlink()
    (root / "sub-05/anat/sub-05_T1w.nii.gz").symlink_to("../../sub-01/anat/sub-01_T1w.nii")
    loop = image(root, "sub-06_T1w")
    loop.unlink()
    loop.symlink_to(loop.name)
    rows = by_id(root)
    assert {key for key, row in rows.items() if row["status"] == "ok"} == {"sub-01_T1w", "sub-05_T1w"}
    assert rows["sub-01_T1w"]["uri"] == str(first)
    assert "second file of image sub-01_T1w" in rows["sub-01/anat/sub-01_T1w.nii.gz"]["reason"]
    assert "out of the archive" in rows["sub-02_T1w"]["reason"]
    assert "broken link" in rows["sub-03_T1w"]["reason"]
    assert "not a file" in rows["sub-04_T1w"]["reason"]
    assert rows["sub-06_T1w"]["reason"]


def test_a_file_that_is_usable_goes_before_one_that_is_not(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    good = image(tmp_path, "sub-01_T1w")
    good.with_name("sub-01_T1w.nii").symlink_to("absent")
    rows = by_id(tmp_path)
    assert rows["sub-01_T1w"]["uri"] == str(good)
    assert "broken link" in rows["sub-01/anat/sub-01_T1w.nii"]["reason"]


def scan(subject: str, site: str | None = "A", status: str = "ok") -> dict:
    return dict.fromkeys(SCHEMA.names) | {"image_id": subject, "subject": subject, "site": site, "status": status}


def splits(rows: list[dict], **options) -> dict[str, str]:
    return {row["subject"]: row["split"] for row in assign_splits(rows, ManifestConfig(**options))}


def test_splits_are_reproducible_and_stratified():
    rows = [scan(f"{site}{number}", site) for site in "ABCD" for number in range(20)]
    found = splits(rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert splits(shuffled) == found
    assert splits(rows, seed=1) != found
    assert Counter((subject[0], split) for subject, split in found.items() if split != "train") == {
        (site, split): 2 for site in "ABCD" for split in ("val", "test")
    }
    assert all(row["split"] is None for row in rows)  # the input is left alone


def test_all_images_of_a_subject_share_a_split_and_travelers_are_test():
    rows = [scan(f"{number}", site) for number in range(30) for site in ("A", "A")]
    rows += [scan("traveler", "A"), scan("traveler", "B", status="unusable")]
    found = defaultdict(set)
    for row in assign_splits(rows, ManifestConfig(val_fraction=0.4)):
        found[row["subject"]].add(row["split"])
    assert all(len(kinds) == 1 for kinds in found.values())
    assert found["traveler"] == {"test"}


@pytest.mark.parametrize("count", [3, 4, 7])
@pytest.mark.parametrize("shares", [(0.01, 0.0), (0.1, 0.1), (0.5, 0.49), (0.0, 0.99)])
def test_three_subjects_are_enough_for_train_and_val(count, shares):
    rows = [scan(f"{number}", "ABC"[number % 3]) for number in range(count)] + [scan("t", "A"), scan("t", "B")]
    found = Counter(splits(rows, val_fraction=shares[0], test_fraction=shares[1]).values())
    assert found["train"] >= 1
    assert found["test"] >= 1
    assert (found["val"] >= 1) == (shares[0] > 0)


def test_one_subject_is_trained_on_and_unusable_ones_have_no_split():
    found = splits([scan("1"), scan("2", status="unusable"), scan("3", site=None, status="unusable")])
    assert found == {"1": "train", "2": None, "3": None}
    assert assign_splits([], ManifestConfig()) == []


def test_manifest_there_and_back(tmp_path):
    table = to_table([scan("1") | {"uri": "/a", "shape": [1, 2, 3], "spacing_mm": [1.0, 1.0, 2.5], "bytes": 2**40}])
    for path in (tmp_path / "new" / "m.parquet", (tmp_path / "n.parquet").as_uri()):
        write_manifest(table, path)
        assert read_manifest(path).equals(table)


def test_what_is_no_manifest_is_refused(tmp_path):
    path = tmp_path / "m.parquet"
    with pytest.raises(DataError, match="mmh manifest"):
        read_manifest(path)
    path.write_text("image_id,uri")
    with pytest.raises(DataError, match="readable manifest"):
        read_manifest(path)
    pq.write_table(pa.table({"image_id": ["a"]}), path)
    with pytest.raises(DataError, match="version none"):
        read_manifest(path)
    pq.write_table(to_table([]).replace_schema_metadata({b"mmh_manifest_version": b"99"}), path)
    with pytest.raises(DataError, match="version 99"):
        read_manifest(path)


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_manifest_that_is_no_regular_file_is_not_opened(tmp_path, kind):
    with pytest.raises(DataError, match="readable manifest"):
        read_manifest(put_special(tmp_path / "new/m.parquet", kind))


def test_real_archive(real_bids, caplog):
    rows = find_images(real_bids)
    places = [path for path in real_bids.glob("sub-*/**/*.nii.gz") if path.parent.name == "anat"]
    assert [row["uri"] for row in sorted(rows, key=lambda row: row["uri"])] == sorted(map(str, places))
    table = [line.split("\t") for line in (real_bids / "participants.tsv").read_text().splitlines()]
    column = table[0].index("site")
    sites = {cells[0]: cells[column] for cells in table[1:]}
    assert all(row["site"] == sites[f"sub-{row['subject']}"] for row in rows)
    assert {row["status"] for row in rows} == {"ok"}
    assert caplog.messages == []  # no false alarm


def test_images_without_a_site_stay_usable_where_none_is_required(tmp_path):
    people(tmp_path, "sub-01 A 30 F")
    image(tmp_path, "sub-01_T1w")
    image(tmp_path, "sub-02_T1w")
    image(tmp_path, "sub-02_bad-name-here_T1w")
    strict, lax = by_id(tmp_path), by_id(tmp_path, require_site=False)
    assert strict["sub-02_T1w"]["status"] == "unusable"
    assert "no site" in strict["sub-02_T1w"]["reason"]
    assert (lax["sub-02_T1w"]["status"], lax["sub-02_T1w"]["site"], lax["sub-02_T1w"]["reason"]) == ("ok", None, None)
    assert lax["sub-01_T1w"]["site"] == "A"
    assert [row["status"] for row in lax.values()].count("unusable") == 1  # other reasons still count


def test_an_archive_without_any_site_is_refused_only_where_one_is_required(tmp_path):
    image(tmp_path, "sub-01_T1w")
    with pytest.raises(DataError, match="none of 1 images has a site"):
        find_images(tmp_path)
    assert [row["status"] for row in find_images(tmp_path, require_site=False)] == ["ok"]


def test_a_folder_that_cannot_be_read_is_a_row_and_the_others_are_found(tmp_path, monkeypatch):
    """A subject that is a broken link, and one whose session the file system refuses to list."""
    people(tmp_path, "sub-01 A 30 F", "sub-02 A 30 F")
    for stem in ("sub-01_T1w", "sub-02_ses-1_T1w", "sub-02_ses-2_T1w"):
        image(tmp_path, stem)
    (tmp_path / "sub-04").symlink_to(".git/annex/absent")
    scandir = os.scandir

    def refusing(folder):
        if os.path.basename(folder) == "ses-1":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    rows = by_id(tmp_path)
    usable = {key for key, row in rows.items() if row["status"] == "ok"}
    assert usable == {"sub-01_T1w", "sub-02_ses-2_T1w"}
    assert rows.keys() - usable == {"sub-02/ses-1", "sub-04"}
    assert "Permission denied; expected a readable folder" in rows["sub-02/ses-1"]["reason"]
    assert "a broken link; expected a readable folder" in rows["sub-04"]["reason"]
    assert (rows["sub-04"]["subject"], rows["sub-02/ses-1"]["subject"]) == ("04", "02")
    assert to_table(rows.values()).num_rows == 4
