"""An archive in an object store gives the same rows as on a disk. Uses a real S3 server (moto) on the loopback."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.archives import match
from mmh_ray.bids.labels import add_labels
from mmh_ray.bids.lesions import add_lesions
from mmh_ray.bids.manifest import find_images
from mmh_ray.bids.remote_archive import outlined
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.object_store import Store, local_path
from tests.s3_files import BUCKET, upload

URI = "s3://bucket/data/bids"


def write(path: Path, text: str = "") -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Sites from a table, from a sidecar and missing ones, masks, strays, and files that are not read."""
    root = tmp_path / "bids"
    write(root / "dataset_description.json", json.dumps({"Name": "Odd", "BIDSVersion": "1.10.0"}))
    write(root / "participants.tsv", "participant_id\tsite\tage\nsub-01\tOslo\t40\nsub-02\tBonn\t50+\n")
    write(root / "T1w.json", json.dumps({"Manufacturer": "of all", "MagneticFieldStrength": 3}))
    for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz"):
        write(root / name, "no voxels")
    write(root / "sub-03/anat/sub-03_T2w.nii.gz", "no voxels")
    write(root / "sub-03/anat/sub-03_T2w.json", json.dumps({"InstitutionName": "Rom"}))
    write(root / "sub-02/ses-1/sub-02_ses-1_scans.tsv", "filename\tsite\nanat/sub-02_ses-1_T1w.nii.gz\tKiel\n")
    write(root / "sub-04/anat/sub-04_T1w.mgz")
    write(root / "sub-05/anat/sub-05_acq-%20 ä_T1w.nii.gz")
    write(root / "derivatives/masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz", "mask")
    write(root / "sourcedata/sub-01/sub-01_T1w.nii.gz", "not looked at")
    write(root / ".git/annex", "hidden")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("require_site", [False, True])
def test_the_rows_are_those_of_the_folder(s3: Any, archive: Path, require_site: bool) -> None:
    upload(s3, archive, "data/bids")
    expected = [dict(row) for row in find_images(archive, require_site=require_site)]
    found = [dict(row) for row in find_images(f"{URI}/", require_site=require_site)]
    assert json.loads(json.dumps(expected).replace(str(archive.resolve()), URI)) == json.loads(json.dumps(found))
    first = found[0]
    assert first["uri"] == f"{URI}/sub-01/anat/sub-01_T1w.nii.gz"
    assert first["mask_uri"] == f"{URI}/derivatives/masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    assert (first["site"], first["manufacturer"]) == ("Oslo", "of all")


@pytest.mark.slow
def test_errors_name_the_archive_and_not_the_copy(s3: Any, archive: Path) -> None:
    for path in archive.rglob("anat/*"):
        path.unlink()
    upload(s3, archive, "data/bids")
    with pytest.raises(DataError, match=f"^{URI}: no image in its place"):
        find_images(URI)
    s3.put_object(Bucket=BUCKET, Key="data/bids/participants.tsv", Body=b"\xff\xfe")
    with pytest.raises(DataError, match=f"^{URI}/participants.tsv: UTF-16"):
        find_images(URI)


@pytest.mark.slow
def test_a_table_beyond_all_bounds_is_refused_as_on_a_disk(s3: Any, archive: Path, tmp_path: Path) -> None:
    """It is not even fetched: the outline has a sparse file of its size."""
    upload(s3, archive, "data/bids")
    s3.put_object(Bucket=BUCKET, Key="data/bids/participants.tsv", Body=bytes(64 * 2**20 + 1))
    with pytest.raises(DataError, match=f"^{URI}/participants.tsv: larger than 64 MiB"):
        find_images(URI)


@pytest.mark.slow
def test_no_bucket_no_folder_and_no_way_to_the_store_are_told_apart(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"s3://absent/bids: no bucket absent; expected a bucket"):
        find_images("s3://absent/bids")
    with pytest.raises(
        ConfigError, match=r"s3://bucket/absent: no such folder, or an empty one; expected a BIDS archive"
    ):
        find_images("s3://bucket/absent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"s3://bucket/bids: .*connect.* Create the bucket, or check"):
        find_images("s3://bucket/bids")


@pytest.mark.slow
def test_keys_that_are_no_file_names_cost_only_themselves(
    s3: Any, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upload(s3, archive, "data/bids")
    expected = [row["image_id"] for row in find_images(URI, require_site=False)]
    for key in ("sub-01/anat/sub-01_T1w.nii.gz/inside", "sub-01/anat/" + "x" * 300 + "_T1w.nii.gz"):
        s3.put_object(Bucket=BUCKET, Key=f"data/bids/{key}", Body=b"odd")
    before = {path: path.stat().st_mtime for path in Path("/tmp").glob("escaped*")}
    s3.put_object(Bucket=BUCKET, Key="data/bids/sub-01/../../../escaped_T1w.nii.gz", Body=b"odd")
    with caplog.at_level(logging.WARNING):
        assert [row["image_id"] for row in find_images(URI, require_site=False)] == expected
    assert "2 x an object left out, because its key cannot be a file name" in caplog.text
    assert {path: path.stat().st_mtime for path in Path("/tmp").glob("escaped*")} == before


@pytest.mark.slow
def test_outputs_labels_and_lesions_are_found_as_in_folders(s3: Any, archive: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "out"
    write(outputs / "sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz")
    labels = archive / "derivatives/labels/sub-01/anat/sub-01_desc-dlmuse_dseg.nii.gz"
    lesion = archive / "derivatives/lesions/sub-03/anat/sub-03_label-lesion_mask.nii.gz"
    write(labels)
    write(lesion)
    upload(s3, archive, "data/bids")
    upload(s3, outputs, "data/out")
    rows = [dict(row) for row in find_images(URI, require_site=False) if row["status"] == "ok"]
    uris = [row["uri"] for row in rows]
    matched = match("ours", "s3://bucket/data/out", rows)
    assert matched.paths == {"sub-01_T1w": "s3://bucket/data/out/sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz"}
    assert {problem.status for problem in matched.unmatched} == {"missing"}
    assert all("/mmh-" not in problem.reason for problem in matched.unmatched)
    with outlined(rows) as ():
        add_lesions(rows)
        add_labels(rows)
    assert [row["uri"] for row in rows] == uris
    by_image = {row["image_id"]: row for row in rows}
    assert by_image["sub-01_T1w"]["labels_uri"] == f"{URI}/{labels.relative_to(archive)}"
    assert by_image["sub-03_T2w"]["lesion_uri"] == f"{URI}/{lesion.relative_to(archive)}"
    assert by_image["sub-03_T2w"]["labels_uri"] is None
    with outlined(rows, f"{URI}/derivatives/labels", None) as (folder, nothing):
        assert nothing is None
        add_labels(rows, folder)
    assert by_image["sub-01_T1w"]["labels_uri"] == f"{URI}/{labels.relative_to(archive)}"


@pytest.mark.fast
@pytest.mark.parametrize(
    "uri", ["s3://key:s3cr3t@bucket/x", "s3://bucket/x?secret=s3cr3t", "gs://key:s3cr3t@bucket", "abfs://s3cr3t@host/x"]
)
def test_keys_in_a_uri_are_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a URI such as s3://bucket/folder, without keys") as caught:
        Store(uri)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("file:///data/my%20scans", "/data/my scans"),
        ("file://localhost/data", "/data"),
        ("/data", "/data"),
        ("s3://bucket/a%20b", "s3://bucket/a%20b"),
    ],
)
def test_a_file_uri_is_a_path(place: str, path: str) -> None:
    assert local_path(place) == path
