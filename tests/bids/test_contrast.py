"""Contrast agents and other unusual contrasts are found in file names and sidecars."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.contrast import contrast_flags

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sub-01_ce-gadolinium_T1w.nii.gz", "contrast agent (gadolinium): "),
        ("sub-01_ses-2_acq-fast_ce-Gd_run-2_FLAIR.nii", "contrast agent (Gd): "),
        ("sub-01_part-phase_T1w.nii.gz", "part-phase: not a magnitude"),
        ("sub-01_part-imag_T2w.nii.gz", "part-imag: not a magnitude"),
        ("sub-01_inv-1_T1w.nii.gz", "inv-1: "),
        ("sub-01_mt-on_T1w.nii.gz", "mt-on: "),
    ],
)
def test_an_entity_that_changes_the_contrast_is_a_flag(tmp_path: Path, name: str, said: str) -> None:
    [flag] = contrast_flags(tmp_path / name)
    assert flag.startswith(said)


@pytest.mark.parametrize(
    "name", ["sub-01_T1w.nii.gz", "sub-01_acq-postgad_T1w.nii.gz", "sub-01_part-mag_mt-off_T1w.nii"]
)
def test_free_text_and_the_usual_are_no_flag(tmp_path: Path, name: str) -> None:
    assert contrast_flags(tmp_path / name) == ()


@pytest.mark.parametrize(
    ("sidecar", "flagged"),
    [
        ({"ContrastBolusAgent": "Gadovist"}, True),
        ({"ContrastBolusIngredient": ["GADOLINIUM"]}, True),
        ({"ContrastBolusAgent": " none "}, False),
        ({"ContrastBolusAgent": None, "ContrastBolusIngredient": 3}, False),
        (["no object"], False),
    ],
)
def test_a_sidecar_may_name_the_agent(tmp_path: Path, sidecar: Any, flagged: bool) -> None:
    (tmp_path / "sub-01_T1w.json").write_text(json.dumps(sidecar))
    for name in ("sub-01_T1w.nii", "sub-01_T1w.nii.gz"):
        assert bool(contrast_flags(tmp_path / name)) == flagged


def test_a_sidecar_that_is_no_regular_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sub-01_T1w.json")
    assert contrast_flags(tmp_path / "sub-01_T1w.nii.gz") == ()
