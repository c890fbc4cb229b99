"""Domains that images are mapped to: no two, of this run or of an earlier one, have images of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmh_ray.config import HarmonizeConfig
from mmh_ray.errors import ConfigError
from mmh_ray.harmonization.outputs import is_current, ledger_row, mark_shared_outputs
from mmh_ray.harmonization.target_domain import TargetDomain, check_names, describe_labels
from mmh_ray.models.target.bundle import Target

pytestmark = pytest.mark.fast

NATIVE, TEMPLATE = HarmonizeConfig(), HarmonizeConfig(space="template")
UNIFIED = TargetDomain(None, "s" * 64)


def domain_of(name: str | None) -> TargetDomain:
    return UNIFIED if name is None else TargetDomain(Target(name, {}, name, "", {}, {}, 0), f"settings of {name}")


def image(name: str = "sub-01_T1w") -> dict[str, Any]:
    about = {"site": "north", "sequence": "T1w", "status": "ok", "reason": None}
    return about | {"image_id": name, "uri": f"/bids/sub-01/anat/{name}.nii.gz"}


def made(name: str | None, status: str = "done", **more: Any) -> dict[str, Any]:
    """Row of the ledger of an image that was made for a target."""
    domain = domain_of(name)
    return ledger_row(image(), domain, status, **{"output": str(domain.output(image()["uri"], NATIVE))} | more)


@pytest.mark.parametrize(
    "names",
    [
        ("site-1", "site 1"),
        ("site_1", "site.1"),
        ("Alder", "alder"),
        ("site a", "sitea"),  # which capitals alone tell apart
        ("Orléans", "Orle\u0301ans"),
        ("north", "north\u200b"),
        ("north", "north東"),
        ("../north", "north"),
        ("north", "north"),
    ],
)
def test_names_that_become_one_are_refused_in_a_run_and_across_runs(names: tuple[str, str]) -> None:
    one, other = names
    with pytest.raises(ConfigError) as caught:
        check_names([], [domain_of(one), domain_of(other)], [], NATIVE)
    assert repr(one) in caught.value.received
    assert repr(other) in caught.value.received
    if one == other:
        return
    with pytest.raises(ConfigError) as caught:
        check_names([image()], [domain_of(other)], [made(one)], NATIVE)
    assert repr(one) in caught.value.received
    assert repr(other) in caught.value.received
    assert "desc-harmonized" in caught.value.received


@pytest.mark.parametrize("name", ["東京", "—", ""])
def test_a_name_that_leaves_no_label_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"letters A to Z"):
        check_names([], [domain_of(name)], [], NATIVE)


def test_an_image_that_an_earlier_release_wrote_over_the_unified_one_is_not_overwritten() -> None:
    earlier = made(None) | {"image_id": "sub-01_T1w@東京", "target": "東京"}
    with pytest.raises(ConfigError, match=r"the unified domain, whose images .* images of target '東京'"):
        check_names([image()], [UNIFIED], [earlier], NATIVE)
    check_names([image()], [domain_of("alder")], [earlier], NATIVE)


def test_one_path_belongs_to_one_target_even_if_the_labels_differ() -> None:
    preprocessed = image("sub-01_desc-x_T1w")
    own = domain_of("alder")
    earlier = made("oak", output=str(own.output(preprocessed["uri"], NATIVE)))
    with pytest.raises(ConfigError, match=r"target 'alder'.*target 'oak'"):
        check_names([preprocessed], [own], [earlier], NATIVE)


def test_different_targets_and_continued_runs_are_accepted() -> None:
    names = ("alder", "birch", "site-1", "site-2", None)
    domains = [domain_of(name) for name in names]
    check_names([image()], domains, [made(name) for name in names], NATIVE)
    nothing_made = made("site 1", "failed", output=None)
    check_names([image()], domains, [nothing_made], NATIVE)


def test_an_output_whose_name_would_be_too_long_fails_alone() -> None:
    rows = [image(), image(f"sub-{'1' * 230}_T1w")]
    mark_shared_outputs(rows, [domain_of("alder")], NATIVE)
    assert [row["status"] for row in rows] == ["ok", "unusable"]
    assert "at most 244 characters" in rows[1]["reason"]


def test_images_that_differ_in_space_alone_share_the_templates() -> None:
    rows = [image("sub-01_space-a_T1w"), image("sub-01_space-b_T1w")]
    mark_shared_outputs(rows, [UNIFIED], TEMPLATE)
    assert [row["status"] for row in rows] == ["ok", "unusable"]
    assert "the output of sub-01_space-a_T1w" in rows[1]["reason"]


def test_an_output_path_in_a_damaged_row_that_is_too_long_does_not_exist(tmp_path: Path) -> None:
    assert not is_current(made(None, output="x" * 5000), tmp_path, "a", "b", UNIFIED)


def test_the_labels_of_derivatives_are_explained() -> None:
    outputs = [
        ("sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz", None),
        ("sub-01/anat/sub-01_desc-preprocHarmonizedNorth_T1w.nii.gz", "north"),
        ("sub-01/anat/sub-01_T1w.nii.gz", None),
        ("damaged", "north"),
    ]
    descriptions = describe_labels(outputs)
    assert set(descriptions) == {"harmonized", "preprocHarmonizedNorth"}
    assert "unified domain" in descriptions["harmonized"]
    assert descriptions["preprocHarmonizedNorth"].startswith("desc-preproc of the source archive.")
    assert "target north" in descriptions["preprocHarmonizedNorth"]
