"""Who is scored, and what is said of those who cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.archives import Unmatched
from mmh_ray.bids.manifest import to_table, write_manifest
from mmh_ray.bids.schema import SCHEMA
from mmh_ray.config import Config, EvaluateConfig, ModelConfig
from mmh_ray.distributed.selection import check_archives, choose_cases, note_untrained, usable_rows
from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Case

pytestmark = pytest.mark.fast

CONFIG = Config(model=ModelConfig(sequences=("T1w",)))


def _row(name: str, **facts: Any) -> dict[str, Any]:
    row = {"image_id": f"sub-{name}_T1w", "uri": f"/data/sub-{name}_T1w.nii.gz", "subject": name, "site": "a"}
    return dict.fromkeys(SCHEMA.names) | row | {"sequence": "T1w", "status": "ok", "split": "test"} | facts


def _record(name: str, **facts: Any) -> ImageRecord:
    return ImageRecord.from_row(_row(name, **facts))


def test_scans_that_cannot_be_used_are_problems_with_their_reason(tmp_path: Path) -> None:
    bad, foreign = {"status": "unusable", "reason": "cut off"}, {"sequence": "FLAIR"}
    rows = [_row("1"), _row("2", **bad), _row("3", **bad, **foreign), _row("4", **bad, sequence=None)]
    write_manifest(to_table(rows), tmp_path / "manifest.parquet")
    notes = list[str]()
    problems = list[Unmatched]()
    found = usable_rows({"raw": str(tmp_path / "manifest.parquet")}, str(tmp_path), CONFIG, notes, problems)
    assert [row["image_id"] for row in found] == ["sub-1_T1w"]
    assert problems == [
        Unmatched("raw", "sub-2_T1w", "unusable", "cut off"),
        Unmatched("raw", "sub-4_T1w", "unusable", "cut off"),
    ]


def test_a_target_archive_may_have_a_name_of_its_own() -> None:
    check_archives({"raw": "r", "ours": "o", "ours_target": "t"})


def test_sites_that_baselines_were_fitted_without_are_named() -> None:
    cases = [Case(name, "T1w", (_record(name, site=site),)) for name, site in (("1", "a"), ("2", "b"))]
    for training, said in (([], 0), ([_record("3")], 1), ([_record("3"), _record("4", site="b")], 0)):
        notes = list[str]()
        note_untrained(training, cases, notes)
        assert len(notes) == said
    note_untrained([_record("3")], cases, notes)
    assert notes[0].startswith("T1w: no image of split train of b;")


@pytest.mark.parametrize(("kind", "subjects"), [("travelers", 2), ("test", 4), ("all", 8), ("auto", 2)])
def test_who_is_scored_can_be_chosen(kind: str, subjects: int) -> None:
    """Two of three people at each site are of split train; two more were scanned at both."""
    records = [
        _record(f"{site}{number}", site=site, split="test" if number == 2 else "train")
        for site in ("a", "b")
        for number in range(3)
    ]
    for name in ("traveler0", "traveler1"):
        records += [_record(name, site="a"), _record(name, site="b")]
    cases = choose_cases(records, Config(evaluate=EvaluateConfig(kind)), [])
    assert len(cases) == subjects


def test_that_nobody_is_left_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no subject of evaluate\.subjects=travelers"):
        choose_cases([_record("1"), _record("2")], Config(evaluate=EvaluateConfig("travelers")), [])
