"""Which outputs a target's evaluation looks for, and which answers it does not take; without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.config import Config, StyleConfig
from mmh_ray.distributed.evaluate_target import check_answers, style_describer, target_cases
from mmh_ray.errors import DataError, ModelError
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.target_metrics import OURS, TargetCase
from mmh_ray.models.style.encoder import make_style_encoder

pytestmark = pytest.mark.fast


def cases(moved: Path, target: str, made: dict[str, Any]) -> list[TargetCase]:
    """A traveler's T1w and T2w scans at two sites, those of the south moved by a target."""
    about = [(site, sequence) for site in ("north", "south") for sequence in ("T1w", "T2w")]
    records = [
        ImageRecord(f"sub-1_ses-{site}_{sequence}", "1", site, sequence, uri=f"sub-1_ses-{site}_{sequence}.nii.gz")
        for site, sequence in about
    ]
    found = target_cases(records, "north", "unified", str(moved), target)
    for case in found:
        (source,) = case.sources
        sidecar = Path(source.outputs[OURS].replace(".nii.gz", ".json"))
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        sidecar.write_text(json.dumps({"TargetModel": made}))
    return found


@pytest.mark.parametrize("part", ["images", "validation_images"])
def test_an_answer_that_the_target_was_trained_on_is_refused(tmp_path: Path, part: str) -> None:
    answer = "sub-1_ses-north_T2w"
    training = {name: {"images": ["sub-2_T1w"], "validation_images": ["sub-3_T1w"]} for name in ("T1w", "T2w")}
    made = {"site": "north", "training": training | {"style_encoder": {}}}
    check_answers(cases(tmp_path, "north", made))
    training["T2w"][part].append(answer)
    with pytest.raises(DataError, match=rf"{answer}, which the target north was made from.*scans of other people"):
        check_answers(cases(tmp_path, "north", made))


def test_a_target_from_a_scan_is_found_by_its_name_and_checked(tmp_path: Path) -> None:
    encoder = make_style_encoder(StyleConfig(), 1.0).describe()
    found = cases(tmp_path, "sub-2_T1w", {"reference": "sub-2_T1w", "style_encoder": encoder})
    assert found[0].sources[0].outputs[OURS].endswith("sub-1_ses-south_desc-harmonizedSub2T1W_T1w.nii.gz")
    check_answers(found)
    style_describer(found, Config())
    with pytest.raises(ModelError, match="slices 5"):
        style_describer(found, Config(style=StyleConfig(slices=5)))
    own = "sub-1_ses-north_T1w"
    with pytest.raises(DataError, match=f"{own}, which the target {own} was made from"):
        check_answers(cases(tmp_path, own, {"reference": own, "style_encoder": encoder}))
