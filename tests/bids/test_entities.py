"""File names are parsed or refused with a reason, and never lead out of the output folder."""

import unicodedata
from pathlib import PurePosixPath

import pytest

from mmh_ray.bids.entities import Entities, desc_of, output_path, parse, split_name
from mmh_ray.errors import ConfigError, DataError

pytestmark = pytest.mark.fast


def test_parse_takes_a_name_apart():
    found = parse("/somewhere/sub-01/ses-1/anat/sub-01_ses-1_acq-fast_run-2_T1w.nii.gz")
    assert found == Entities("01", "1", "T1w", (("acq", "fast"), ("run", "2")))
    assert found.image_id == "sub-01_ses-1_acq-fast_run-2_T1w"
    assert found.folders == ("sub-01", "ses-1")


def test_session_is_optional():
    found = parse("sub-01_T2w.nii")
    assert found == Entities("01", None, "T2w")
    assert output_path(found) == PurePosixPath("sub-01/anat/sub-01_desc-harmonized_T2w.nii.gz")


def test_order_of_entities_does_not_matter():
    assert parse("sub-1_run-2_acq-a_ses-3_T1w.nii.gz") == parse("sub-1_ses-3_acq-a_run-2_T1w.nii.gz")


def test_output_keeps_the_other_entities_with_desc_last():
    path = output_path(parse("sub-01_ses-Y_acq-a_run-1_new-x_T1w.nii.gz"))
    assert path == PurePosixPath("sub-01/ses-Y/anat/sub-01_ses-Y_acq-a_run-1_new-x_desc-harmonized_T1w.nii.gz")


def test_different_inputs_have_different_outputs():
    stems = ["sub-1_T1w", "sub-1_T2w", "sub-1_desc-a_T1w", "sub-1_desc-b_T1w", "sub-1_run-1_T1w", "sub-1_run-01_T1w"]
    assert len({str(output_path(parse(f"{stem}.nii"))).lower() for stem in stems}) == len(stems)


@pytest.mark.parametrize(
    "name",
    [
        "T1w.nii.gz",
        "sub-01.nii.gz",
        "sub-01_T1w.mgz",
        "sub-01_T1w.NII",
        "sub-_T1w.nii",
        "sub-01_run-1_run-2_T1w.nii",
        "ses-1_sub-01_T1w.nii",
        "sub-01_T1w (copy).nii.gz",
        "sub-0 1_T1w.nii",
        "sub-é_T1w.nii",
        "sub-٣_T1w.nii",
        "sub-.._T1w.nii",
        "sub-01_acq-a.b_T1w.nii",
        "sub-01_acq-a\n_T1w.nii",
        "sub-01_T1w\n.nii",
        "sub-01__T1w.nii",
    ],
)
def test_bad_names_are_refused(name):
    with pytest.raises(DataError) as caught:
        parse(name)
    assert caught.value.expected
    assert caught.value.remedy


@pytest.mark.parametrize(
    "entities",
    [
        Entities("../../etc", None, "T1w"),
        Entities("01", "..", "T1w"),
        Entities("01", "1/../../..", "T1w"),
        Entities("01", None, "T1w", (("acq", "/etc"),)),
        Entities("01", None, "../T1w"),
        Entities("", None, "T1w"),
    ],
)
def test_no_entity_leads_out_of_the_output_folder(entities):
    with pytest.raises(DataError):
        output_path(entities)


def test_desc_of_the_output_is_checked_too():
    with pytest.raises(DataError):
        output_path(parse("sub-01_T1w.nii"), desc="../x")


def test_names_without_a_subject_are_split_for_sidecars():
    assert split_name("run-1_acq-fast_T1w.json") == ({"acq": "fast", "run": "1"}, "T1w")
    assert list(split_name("run-1_acq-fast_T1w.json")[0]) == ["acq", "run"]
    assert split_name("T1w.json") == ({}, "T1w")


def test_a_target_gives_its_letters_and_digits():
    assert desc_of(None) == "harmonized"
    assert desc_of("north shore 3T") == "harmonizedNorthShore3T"


@pytest.mark.parametrize("name", ["東京", "—", "", " ", "..", "/", "\u200b", "\u0301", "x" * 101])
def test_a_name_that_leaves_no_label_is_refused(name):
    with pytest.raises(ConfigError, match=r"target .*letters A to Z and digits.*another name"):
        desc_of(name)


def test_one_name_is_one_label_however_unicode_writes_it():
    spellings = {unicodedata.normalize(form, "Orléans") for form in ("NFC", "NFD")}
    assert len(spellings) == 2
    assert {desc_of(name) for name in spellings} == {"harmonizedOrleans"}


def test_a_name_that_is_too_long_for_a_file_is_refused():
    longest = Entities("1" * 200, None, "T1w")
    assert len(output_path(longest).name) < 255
    with pytest.raises(DataError, match=r"characters; expected at most 244"):
        output_path(longest, desc=desc_of("x" * 40))
