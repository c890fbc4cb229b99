"""Evaluations are comparable only if all their conditions are equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmh_ray.config import Config, EvaluateConfig
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.metrics import METRICS_VERSION
from mmh_ray.evaluation.promotion.comparability import conditions, differing_conditions

pytestmark = pytest.mark.fast

RECORD = ImageRecord("i", "1", "a", "T1w", age=30.0, sex="F")


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    (tmp_path / "truth/sub-1/anat").mkdir(parents=True)
    (tmp_path / "truth/sub-1/anat/sub-1_desc-noisefree_T1w.nii.gz").write_bytes(b"12")
    return tmp_path / "truth"


def test_equal_conditions_do_not_differ_and_each_change_is_named(truth: Path, tmp_path: Path) -> None:
    config, mask = Config(), tmp_path / "mask.nii.gz"
    mask.write_bytes(b"1")
    found = conditions([RECORD], str(truth), config)
    assert differing_conditions(found, conditions([replace(RECORD)], str(truth), config)) == []
    other = replace(config, evaluate=EvaluateConfig(cnn="none", seed=1))
    assert differing_conditions(found, conditions([RECORD], str(truth), other)) == ["cnn", "seed", "style"]
    other = replace(config, style=replace(config.style, slices=3))
    assert differing_conditions(found, conditions([RECORD], str(truth), other)) == ["style"]
    assert differing_conditions(found, conditions([replace(RECORD, site="b")], str(truth), config)) == ["facts"]
    for kind in ("mask_uri", "lesion_uri"):
        assert differing_conditions(found, conditions([replace(RECORD, **{kind: str(mask)})], str(truth), config)) == [
            "masks"
        ]
    assert differing_conditions(found, conditions([replace(RECORD, labels_uri=str(mask))], str(truth), config)) == [
        "labels"
    ]
    other = replace(config, evaluate=EvaluateConfig(label_table="dlmuse"))
    assert differing_conditions(found, conditions([RECORD], str(truth), other)) == ["label_table"]
    assert differing_conditions(found, conditions([RECORD], None, config)) == ["truth"]
    next(truth.rglob("*.nii.gz")).write_bytes(b"123")
    assert differing_conditions(found, conditions([RECORD], str(truth), config)) == ["truth"]
    assert differing_conditions(found, {name: own for name, own in found.items() if name != "measures"}) == ["measures"]


def test_evaluations_with_other_metric_versions_are_not_comparable(monkeypatch: pytest.MonkeyPatch) -> None:
    found = conditions([RECORD], None, Config())
    monkeypatch.setattr("mmh_ray.evaluation.promotion.comparability.METRICS_VERSION", METRICS_VERSION + 1)
    assert differing_conditions(found, conditions([RECORD], None, Config())) == ["measures"]
