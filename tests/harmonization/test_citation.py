"""The citation text of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmh_ray.bids.status import RunRecord
from mmh_ray.config import Config, load_config, to_dict
from mmh_ray.errors import DataError
from mmh_ray.harmonization.citation import citation_text, write_citation

pytestmark = pytest.mark.fast


def record_of(config: Config) -> RunRecord:
    return RunRecord(
        source="/archive",
        model="mmh-base",
        model_hash="a" * 64,
        version="1.2.3",
        images=1,
        started="2026-01-01T00:00:00+00:00",
        settings=to_dict(config),
        versions={"torch": "2.14.1"},
    )


def test_it_names_versions_model_and_settings() -> None:
    text = citation_text(record_of(Config()))
    for told in ("mmh_ray 1.2.3", "mmh-base", "a" * 64, "torch 2.14.1", "axial, coronal, sagittal", "2601.08193"):
        assert told in text
    assert "unified domain, one look per sequence" in text


def test_settings_change_the_text() -> None:
    usual = citation_text(record_of(Config()))
    for override, told in (
        ("harmonize.space=template", "1 mm grid of the template"),
        ("harmonize.intensity=source", "in the range of the scan"),
        ("harmonize.detail=model", "own image was resampled"),
        ("harmonize.inversion_depth=7", "inversion of the scan in 7 steps"),
        ("prepare.skull=strip", "outside the brain mask were set to zero"),
        ("prepare.register=false", "left in the orientation of its header"),
    ):
        assert told not in usual
        assert told in citation_text(record_of(load_config(None, [override])))
    assert "the look of the target north, south" in citation_text(record_of(Config()), ["north", "south"])


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    elsewhere = tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "logs").symlink_to(elsewhere)
    with pytest.raises(DataError, match="link"):
        write_citation(record_of(Config()), out)
    assert list(elsewhere.iterdir()) == []
