"""Who is scored at a target, and which scans may not be compared with; without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.config import Config, StyleConfig
from mmh_ray.distributed.target_selection import check_unseen, select_at_target, target_style
from mmh_ray.errors import DataError, ModelError
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Case
from mmh_ray.evaluation.metrics.registry import OURS
from mmh_ray.models.style.encoder import make_style_encoder
from tests.s3_files import BUCKET, upload


def record(subject: str, site: str, sequence: str = "T1w", **facts: Any) -> ImageRecord:
    """A scan of somebody."""
    return ImageRecord(f"sub-{subject}_ses-{site}_{sequence}", subject, site, sequence, **facts)


def cases(folder: Path, made: dict[str, Any]) -> list[Case]:
    """A traveler's T1w and T2w scans at two sites, those of the south moved by a target."""
    records = []
    for sequence in ("T1w", "T2w"):
        output = folder / f"{sequence}.nii.gz"
        output.with_name(f"{sequence}.json").write_text(json.dumps({"TargetModel": made}))
        records += [record("1", "north", sequence), record("1", "south", sequence, outputs={OURS: str(output)})]
    return select_at_target(records, "north").cases


@pytest.mark.fast
def test_travelers_are_scored_and_everybody_else_is_the_cohort() -> None:
    travelers = [record(subject, site) for subject in "12" for site in ("north", "south", "west")]
    others = [record("3", "north"), record("4", "south"), record("1", "north", "T2w"), record("5", "north", "T2w")]
    found = select_at_target([*travelers, *others], "north")
    assert [(case.subject, case.is_pictured) for case in found.cases] == [("1", True), ("2", False)]
    assert {image.site for case in found.cases for image in case.records} == {"south", "west"}
    assert {case.reference.site for case in found.cases if case.reference} == {"north"}
    assert [image.subject for image in found.cohort] == ["3", "5"]
    with pytest.raises(DataError, match="nobody scanned at oak and elsewhere; sites north, south, west"):
        select_at_target([*travelers, *others], "oak")


@pytest.mark.parametrize("part", ["images", "validation_images"])
def test_a_reference_that_the_target_was_trained_on_is_refused(tmp_path: Path, part: str) -> None:
    reference = "sub-1_ses-north_T2w"
    training = {name: {"images": ["sub-2_T1w"], "validation_images": ["sub-3_T1w"]} for name in ("T1w", "T2w")}
    made = {"site": "north", "training": training | {"style_encoder": {}}}
    check_unseen(cases(tmp_path, made))
    training["T2w"][part].append(reference)
    with pytest.raises(DataError, match=rf"{reference}, which the target north was made from.*scans of other people"):
        check_unseen(cases(tmp_path, made))


@pytest.mark.fast
def test_a_target_from_a_scan_is_checked(tmp_path: Path) -> None:
    encoder = make_style_encoder(StyleConfig(), 1.0).describe()
    found = cases(tmp_path, {"reference": "sub-2_T1w", "style_encoder": encoder})
    check_unseen(found)
    target_style(found, Config())
    with pytest.raises(ModelError, match="slices 5"):
        target_style(found, Config(style=StyleConfig(slices=5)))
    own = "sub-1_ses-north_T1w"
    with pytest.raises(DataError, match=f"{own}, which the target {own} was made from"):
        check_unseen(cases(tmp_path, {"reference": own, "style_encoder": encoder}))


@pytest.mark.fast
def test_a_sidecar_that_tells_no_target_is_refused(tmp_path: Path) -> None:
    found = cases(tmp_path, {})
    (tmp_path / "T1w.json").write_text("{}")
    with pytest.raises(DataError, match=r"T1w.json: KeyError.*Harmonize the image again"):
        check_unseen(found)


@pytest.mark.slow
def test_sidecars_in_an_object_store_are_read_too(s3: Any, tmp_path: Path) -> None:
    own = "sub-1_ses-north_T1w"
    encoder = make_style_encoder(StyleConfig(), 1.0).describe()
    cases(tmp_path, {"reference": own, "style_encoder": encoder})
    upload(s3, tmp_path, "out")
    output = "s3://bucket/out/T1w.nii.gz"
    records = [record("1", "north"), record("1", "south", outputs={OURS: output})]
    stored = select_at_target(records, "north").cases
    with pytest.raises(DataError, match=f"{own}, which the target {own} was made from"):
        check_unseen(stored)
    with pytest.raises(ModelError, match="slices 5"):
        target_style(stored, Config(style=StyleConfig(slices=5)))
    s3.put_object(Bucket=BUCKET, Key="out/T1w.json", Body=b"{}")
    with pytest.raises(DataError, match=r"^s3://bucket/out/T1w.json: KeyError.*Harmonize the image again"):
        check_unseen(stored)
    s3.delete_object(Bucket=BUCKET, Key="out/T1w.json")
    check_unseen(stored)
