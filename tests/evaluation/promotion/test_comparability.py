"""Evaluations are comparable only where everything that decides their figures is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmh_ray.config import Config, EvaluateConfig
from mmh_ray.evaluation.metrics import MEASURES_VERSION
from mmh_ray.evaluation.promotion.comparability import conditions, unlike

pytestmark = pytest.mark.fast

ROW = {"image_id": "i", "subject": "1", "site": "a", "sequence": "T1w", "age": 30.0, "sex": "F", "mask_uri": None}


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    (tmp_path / "truth/sub-1/anat").mkdir(parents=True)
    (tmp_path / "truth/sub-1/anat/sub-1_desc-noisefree_T1w.nii.gz").write_bytes(b"12")
    return tmp_path / "truth"


def test_the_same_again_is_alike_and_each_change_is_named(truth: Path, tmp_path: Path) -> None:
    config, mask = Config(), tmp_path / "mask.nii.gz"
    mask.write_bytes(b"1")
    found = conditions([ROW], str(truth), config)
    assert unlike(found, conditions([dict(ROW)], str(truth), config)) == []
    other = replace(config, evaluate=EvaluateConfig(cnn="none", seed=1))
    assert unlike(found, conditions([ROW], str(truth), other)) == ["cnn", "seed", "style"]
    other = replace(config, style=replace(config.style, slices=3))
    assert unlike(found, conditions([ROW], str(truth), other)) == ["style"]
    assert unlike(found, conditions([ROW | {"site": "b"}], str(truth), config)) == ["facts"]
    for kind in ("mask_uri", "lesion_uri"):
        assert unlike(found, conditions([ROW | {kind: str(mask)}], str(truth), config)) == ["masks"]
    assert unlike(found, conditions([ROW | {"labels_uri": str(mask)}], str(truth), config)) == ["labels"]
    other = replace(config, evaluate=EvaluateConfig(label_table="dlmuse"))
    assert unlike(found, conditions([ROW], str(truth), other)) == ["label_table"]
    assert unlike(found, conditions([ROW], None, config)) == ["truth"]
    next(truth.rglob("*.nii.gz")).write_bytes(b"123")
    assert unlike(found, conditions([ROW], str(truth), config)) == ["truth"]
    assert unlike(found, {name: own for name, own in found.items() if name != "measures"}) == ["measures"]


def test_figures_of_other_measures_are_not_comparable(monkeypatch: pytest.MonkeyPatch) -> None:
    found = conditions([ROW], None, Config())
    monkeypatch.setattr("mmh_ray.evaluation.promotion.comparability.MEASURES_VERSION", MEASURES_VERSION + 1)
    assert unlike(found, conditions([ROW], None, Config())) == ["measures"]
