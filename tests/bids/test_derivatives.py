"""What lies around the images never mistakes a raw archive for its own output."""

import json

import pytest

from mmh_ray.bids.derivatives import check_dataset, read_sidecar, write_dataset_description, write_sidecar
from mmh_ray.errors import ConfigError
from tests.bids.archive_files import SPECIAL, put_special

pytestmark = pytest.mark.fast


def test_description_names_its_source_and_its_maker(tmp_path):
    source, out = tmp_path / "raw", tmp_path / "out"
    source.mkdir()
    (source / "dataset_description.json").write_text('{"Name": "Study", "DatasetDOI": "10.1/x"}')
    write_dataset_description(out, source, "0.1.0+gabc")
    found = json.loads((out / "dataset_description.json").read_text())
    assert found["DatasetType"] == "derivative"
    assert found["BIDSVersion"]
    assert found["Name"] == "Study, harmonized"
    assert found["GeneratedBy"] == [{"Name": "mmh_ray", "Version": "0.1.0+gabc"}]
    assert found["SourceDatasets"] == [{"URL": source.as_uri(), "DOI": "10.1/x"}]
    write_dataset_description(out, source, "0.2.0")  # a later run may replace its own
    found = json.loads((out / "dataset_description.json").read_text())
    assert found["GeneratedBy"] == [{"Name": "mmh_ray", "Version": "0.2.0"}]


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
    """Of the archive it is passed over; in the output folder it is another's."""
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
