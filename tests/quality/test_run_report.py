"""The report of a cohort is written even if a sidecar is damaged; that image appears in it without measures."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.derivatives import figure_paths, sidecar_path
from mmh_ray.bids.ledger import JOURNAL, current_rows
from mmh_ray.bids.output_folder import OutputFolder
from mmh_ray.bids.status import RunRecord, utc_now
from mmh_ray.cli import main
from mmh_ray.config import QualityConfig
from mmh_ray.quality.cohort import figures_in, histogram_in
from mmh_ray.quality.run_report import NO_FIGURES, image_record, write_report_of

pytestmark = pytest.mark.fast

FLAT = [0.8] * 50
"""The histogram of intensities that are all equally frequent."""
SIDECAR = {"QC": {"preservation": 0.9, "registration": 0.5}, "BrainHistogram": {"Before": FLAT, "After": FLAT}}
DEEP = "[" * 50_000
NO_FILES = ["", "null", "[]", "3", '"x"', "{", DEEP, '{"QC": ' + DEEP, "\0", "9" * 5000]
NASTY: list[Any] = [None, 3, "abc", True, [], [None], {"a": None}, math.nan, math.inf, 10**400, -1e308, {"x": {"y": 1}}]
NO_HISTOGRAMS: list[Any] = [
    *NASTY,
    FLAT[:1],
    FLAT * 21,
    [*FLAT[:-1], None],
    [*FLAT[:-1], "1"],
    [*FLAT[:-1], True],
    [*FLAT[:-1], math.nan],
    [*FLAT[:-1], -0.1],
    [*FLAT[:-1], 1e300],
    [*FLAT[:-1], 10**400],
    [FLAT, FLAT],
]


def case(value: Any) -> str:
    """A short name of a value."""
    return repr(value)[:30].encode("ascii", "backslashreplace").decode()


def made(out: Path, name: str, sidecar: str | None = json.dumps(SIDECAR)) -> dict[str, Any]:
    """A harmonized image's files, and its row."""
    image = out / f"sub-{name}/anat/sub-{name}_desc-harmonized_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.touch()
    if sidecar is not None:
        sidecar_path(image).write_text(sidecar)
    fixed = {"image_id": f"sub-{name}_T1w", "status": "done", "source": f"/bids/sub-{name}/anat/sub-{name}_T1w.nii.gz"}
    more = {"output": str(image.relative_to(out)), "sequence": "T1w", "seconds": 1.0, "flags": []}
    return fixed | more | {"finished": utc_now().isoformat(), "site": "north"}


def check_report(out: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as a killed run leaves them, and the report as a user does; returns its text."""
    (out / JOURNAL).write_text("".join(json.dumps(row) + "\n" for row in rows))
    RunRecord("/bids", "m", "a" * 64, "0.1", len(rows), utc_now().isoformat()).write(out)
    assert main(["status", str(out), "--report"]) == 0
    return (out / "report.html").read_text()


@pytest.mark.parametrize("sidecar", [*NO_FILES, None], ids=case)
def test_an_invalid_sidecar_affects_only_its_image(
    sidecar: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    page = check_report(tmp_path, [made(tmp_path, "01", sidecar), made(tmp_path, "02")])
    assert all(name in page for name in ("sub-01_T1w", "sub-02_T1w", NO_FIGURES))
    assert f"{tmp_path}: 1 images have no figures: their sidecar is missing or damaged" in caplog.messages


@pytest.mark.parametrize("value", NASTY, ids=case)
@pytest.mark.parametrize("key", ["QC", "BrainHistogram"])
def test_a_damaged_part_of_a_sidecar_affects_only_itself(key: str, value: Any, tmp_path: Path) -> None:
    damaged = json.dumps(SIDECAR | {key: value})
    page = check_report(tmp_path, [made(tmp_path, "01", damaged), made(tmp_path, "02")])
    assert "sub-01_T1w" in page
    rows = {row["image_id"]: row for row in current_rows(tmp_path)}
    hurt, whole = (image_record(tmp_path, rows[f"sub-{name}_T1w"]) for name in ("01", "02"))
    assert (whole.qc, whole.histogram_after, whole.flags) == (SIDECAR["QC"], FLAT, ())
    if key == "QC":
        assert (hurt.qc, hurt.histogram_after, hurt.flags) == ({}, FLAT, (NO_FIGURES,))
    else:
        assert (hurt.qc, hurt.histogram_after, hurt.flags) == (SIDECAR["QC"], None, ())


@pytest.mark.parametrize("value", NASTY, ids=case)
def test_a_measure_that_is_not_a_number_is_left_out(value: Any) -> None:
    is_a_number = value in (3, -1e308) and value is not True
    assert figures_in({"a": 1, "b": value}) == ({"a": 1.0, "b": float(value)} if is_a_number else {"a": 1.0})


@pytest.mark.parametrize("value", NO_HISTOGRAMS, ids=case)
def test_an_invalid_histogram_is_ignored(value: Any) -> None:
    assert histogram_in(value) is None


def test_a_valid_histogram_is_not_changed() -> None:
    assert histogram_in(FLAT) == FLAT
    assert histogram_in([0] * 49 + [40]) == [0.0] * 49 + [40.0]  # all in one bin
    assert histogram_in([0.0] * 50) == [0.0] * 50  # all outside the range


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling"])
def test_a_sidecar_that_is_not_a_file_does_not_block_the_report(kind: str, tmp_path: Path) -> None:
    row = made(tmp_path, "01", None)
    path = sidecar_path(tmp_path / row["output"])
    {"pipe": os.mkfifo, "folder": os.mkdir, "dangling": lambda place: os.symlink("nowhere", place)}[kind](path)
    assert NO_FIGURES in check_report(tmp_path, [row, made(tmp_path, "02")])


def test_pictures_outside_the_folder_are_not_shown(tmp_path: Path) -> None:
    """A page that is shared must not contain a file that someone linked into the folder."""
    out = tmp_path / "out"
    row = made(out, "01")
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"\xff\xd8\xffsecret")
    before, after = figure_paths(out / row["output"])
    before.parent.mkdir()
    before.symlink_to(secret)
    after.write_bytes(b"\xff\xd8\xffours")
    page = check_report(out, [row])
    assert base64.b64encode(after.read_bytes()).decode() in page
    assert base64.b64encode(secret.read_bytes()).decode() not in page


@pytest.mark.parametrize("value", ["abc", None, "../../etc", math.nan, [1], {"a": 1}, 10**400, True], ids=case)
def test_a_report_is_written_whatever_a_row_contains(value: Any, tmp_path: Path) -> None:
    """Each row but the last has the value in another field."""
    fields = ["seconds", "finished", "flags", "output", "site", "sequence", "source", "reason", "expected"]
    rows = [made(tmp_path, field) | {field: value} for field in fields]
    page = check_report(tmp_path, [*rows, made(tmp_path, "whole")])
    assert all(f"sub-{name}_T1w" in page for name in (*fields, "whole"))


@pytest.mark.parametrize("quality", [*NASTY, {"least_fit": "x"}, {"least_fit": 10**400}, {"no": 1}], ids=case)
def test_damaged_bounds_in_the_record_are_the_defaults(
    quality: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = RunRecord("/bids", "m", "a" * 64, "0.1", 1, utc_now().isoformat())
    record.write(tmp_path)
    path = tmp_path / "logs/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"quality": quality}}))
    assert main(["status", str(tmp_path), "--report"]) == 0
    assert "the report uses the default quality bounds" in caplog.text
    assert (tmp_path / "report.html").is_file()


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    record = RunRecord("/bids", "m", "a" * 64, "0.1", 0, utc_now().isoformat())
    assert not write_report_of(OutputFolder(tmp_path, str(tmp_path)), record, [], QualityConfig())


@pytest.mark.parametrize("length", [242, 5000])
def test_a_report_is_written_if_names_are_too_long_for_files(length: int, tmp_path: Path) -> None:
    """If an output's name has the maximal length, the names of its pictures would be longer."""
    long = {"output": f"sub-01/anat/{'x' * length}_T1w.nii.gz"}
    assert NO_FIGURES in check_report(tmp_path, [made(tmp_path, "01") | long, made(tmp_path, "02")])
