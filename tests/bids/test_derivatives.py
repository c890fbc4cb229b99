"""Descriptions and sidecars of derivatives; a raw archive is never mistaken for an output folder."""

import json

import pytest

from mmh_ray.bids.derivatives import (
    bids_uri,
    check_dataset,
    generated_by,
    read_sidecar,
    write_dataset_description,
    write_descriptions,
    write_sidecar,
)
from mmh_ray.errors import ConfigError
from tests.bids.archive_files import SPECIAL, put_special

pytestmark = pytest.mark.fast


def test_description_names_its_source_and_its_maker(tmp_path):
    source, out = tmp_path / "raw", tmp_path / "out"
    source.mkdir()
    (source / "dataset_description.json").write_text('{"Name": "Study", "DatasetDOI": "10.1/x", "License": "CC0"}')
    write_dataset_description(out, source, "0.1.0+gabc")
    found = json.loads((out / "dataset_description.json").read_text())
    assert found["DatasetType"] == "derivative"
    assert found["BIDSVersion"]
    assert found["Name"] == "Study, harmonized"
    (made_by,) = found["GeneratedBy"]
    assert (made_by["Name"], made_by["Version"]) == ("mmh_ray", "0.1.0+gabc")
    assert made_by["Description"]
    assert found["DatasetLinks"] == {"raw": source.as_uri()}
    assert found["License"] == "CC0"
    assert found["SourceDatasets"] == [{"URL": source.as_uri(), "DOI": "10.1/x"}]
    write_dataset_description(out, source, "0.2.0")  # a later run may replace its own
    found = json.loads((out / "dataset_description.json").read_text())
    assert found["GeneratedBy"][0]["Version"] == "0.2.0"


def test_description_of_another_archives_derivatives_is_not_overwritten(tmp_path):
    path, moved = tmp_path / "dataset_description.json", tmp_path / "moved"
    write_dataset_description(tmp_path, tmp_path / "raw", "1")
    before = path.read_text()
    with pytest.raises(
        ConfigError, match=r"made of file://.*raw; expected what was made of .*if the archive has moved"
    ):
        write_dataset_description(tmp_path, moved, "1")
    assert path.read_text() == before
    path.write_text(before.replace((tmp_path / "raw").as_uri(), moved.as_uri()))  # as the error says
    write_dataset_description(tmp_path, moved, "2")
    for nothing in ("null", "3", "[3]"):
        path.write_text(f'{{"GeneratedBy": [3, {{"Name": "mmh_ray"}}], "SourceDatasets": {nothing}}}')
        check_dataset(tmp_path, moved)  # whose they are is not said


@pytest.mark.parametrize("content", ['{"Name": "raw", "DatasetType": "raw"}', '{"GeneratedBy": [{"Name": "x"}]}', "{"])
def test_description_of_another_dataset_is_not_overwritten(tmp_path, content):
    path = tmp_path / "dataset_description.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="another dataset"):
        write_dataset_description(tmp_path, tmp_path, "1")
    assert path.read_text() == content


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_sidecar_lies_beside_its_image(tmp_path, ending):
    path = write_sidecar(tmp_path / f"sub-1_desc-harmonized_T1w{ending}", {"Sources": ["a"]})
    assert path == tmp_path / "sub-1_desc-harmonized_T1w.json"
    assert json.loads(path.read_text()) == {"Sources": ["a"]}


def test_sidecar_refuses_nan_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_sidecar(tmp_path / "sub-1_T1w.nii.gz", {"psnr": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_description_that_is_no_regular_file_is_not_opened(tmp_path, kind):
    """In the archive it is ignored; in the output folder it means that the folder belongs to another dataset."""
    source, out = tmp_path / "raw", tmp_path / "out"
    put_special(source / "dataset_description.json", kind)
    write_dataset_description(out, source, "1")
    assert json.loads((out / "dataset_description.json").read_text())["Name"] == "MRI, harmonized"
    other = put_special(tmp_path / "other/dataset_description.json", kind)
    with pytest.raises(ConfigError, match="holds another dataset"):
        check_dataset(other.parent, source)


def test_the_name_of_another_dataset_is_not_copied_through_a_link(tmp_path):
    source, out = tmp_path / "raw", tmp_path / "out"
    source.mkdir()
    (tmp_path / "secret.json").write_text('{"Name": "secret", "DatasetDOI": "10.1/secret"}')
    (source / "dataset_description.json").symlink_to(tmp_path / "secret.json")
    write_dataset_description(out, source, "1")
    assert "secret" not in (out / "dataset_description.json").read_text()


@pytest.mark.parametrize("name", ['"' + "x" * 1_000_000 + '"', '{"a": [1]}', "[1]", "true", '"\\ud800"', "null", '""'])
def test_a_name_that_is_none_is_not_copied(tmp_path, name):
    source, out = tmp_path / "raw", tmp_path / "out"
    source.mkdir()
    (source / "dataset_description.json").write_text(f'{{"Name": {name}, "DatasetDOI": {name}}}')
    write_dataset_description(out, source, "1")
    found = json.loads((out / "dataset_description.json").read_text())
    assert found["Name"] == "MRI, harmonized"
    assert found["SourceDatasets"] == [{"URL": source.as_uri()}]


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_sidecar_that_is_no_regular_file_is_none(tmp_path, kind):
    put_special(tmp_path / "out/sub-1_T1w.json", kind)
    assert read_sidecar(tmp_path / "out/sub-1_T1w.nii.gz") == {}


def test_what_the_user_wrote_beside_the_derivatives_stays(tmp_path):
    write_dataset_description(tmp_path, tmp_path / "raw", "1")
    assert "ledger.parquet" in (tmp_path / ".bidsignore").read_text()
    assert "harmonized" in (tmp_path / "README.md").read_text()
    (tmp_path / ".bidsignore").write_text("mine")
    (tmp_path / "README.md").rename(tmp_path / "README")
    write_dataset_description(tmp_path, tmp_path / "raw", "1")
    assert (tmp_path / ".bidsignore").read_text() == "mine"
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/a/sub-1/ses-2/anat/sub-1_ses-2_T1w.nii", "bids:raw:sub-1/ses-2/anat/sub-1_ses-2_T1w.nii"),
        ("/a/derivatives/my masks/sub-1_mask.nii", "bids:raw:derivatives/my%20masks/sub-1_mask.nii"),
        ("/b/mask.nii", "file:///b/mask.nii"),
        ("s3://bucket/mask.nii", "s3://bucket/mask.nii"),
    ],
)
def test_a_file_of_the_archive_is_named_by_its_place_in_it(path, uri):
    assert bids_uri(path, "/a/sub-1/ses-2/anat/sub-1_ses-2_T1w.nii") == uri


def test_an_archive_in_an_object_store_has_such_names_too():
    scan = "s3://bucket/study/sub-1/anat/sub-1_T1w.nii.gz"
    assert bids_uri(scan, scan) == "bids:raw:sub-1/anat/sub-1_T1w.nii.gz"


def test_a_scan_that_lies_in_no_archive_is_named_by_its_own_place():
    assert bids_uri("/scans/sub-1_T1w.nii", "/scans/sub-1_T1w.nii") == "file:///scans/sub-1_T1w.nii"


def test_labels_are_explained_one_a_line(tmp_path):
    write_descriptions(tmp_path, {"b": "Two\twords\n", "a": "One"})
    text = (tmp_path / "descriptions.tsv").read_text()
    assert text == "desc_id\tdescription\ndesc-a\tOne\ndesc-b\tTwo words\n"


def test_the_container_is_named_where_it_is_known(monkeypatch):
    for name in ("MMH_IMAGE", "APPTAINER_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    assert "Container" not in generated_by("1")
    monkeypatch.setenv("MMH_IMAGE", "registry/mmh-ray:1.2.3")
    assert generated_by("1")["Container"] == {"Type": "docker", "Tag": "registry/mmh-ray:1.2.3"}
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/mmh-ray.sif")
    assert generated_by("1")["Container"] == {"Type": "apptainer", "Tag": "registry/mmh-ray:1.2.3"}
    monkeypatch.delenv("MMH_IMAGE")
    assert generated_by("1")["Container"] == {"Type": "apptainer", "Tag": "mmh-ray.sif"}
