"""Damaged or foreign files in a folder of derivatives: ledger, journal, the record of a run, and sidecars."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.derivatives import check_dataset, sidecar_path
from mmh_ray.bids.ledger import JOURNAL, LEDGER, Journal, current_rows, read_ledger, write_ledger
from mmh_ray.bids.output_folder import OutputFolder
from mmh_ray.bids.status import RECORD, RunRecord, run_status
from mmh_ray.cli.status import quality_bounds
from mmh_ray.config import Config, to_dict
from mmh_ray.quality.run_report import write_report_of
from tests.fuzz.conftest import Guard
from tests.fuzz.mutations import Edit, as_json, byte_edits, edited, fuzz, reshaped, tree_edits

pytestmark = pytest.mark.slow

IMAGE = "sub-1/anat/sub-1_desc-harmonized_T1w.nii.gz"
ROW = {
    "image_id": "sub-1_T1w",
    "target": None,
    "site": "north",
    "sequence": "T1w",
    "source": "/bids/sub-1/anat/sub-1_T1w.nii.gz",
    "output": IMAGE,
    "status": "done",
    "reason": None,
    "expected": None,
    "remedy": None,
    "flags": ["dark"],
    "seconds": 1.5,
    "finished": "2026-01-02T03:04:05+00:00",
    "input_sha256": "a" * 64,
    "input_state": "d" * 64,
    "model_hash": "b" * 64,
    "settings_hash": "c" * 64,
}
FAILED = ROW | {"image_id": "sub-2_T1w", "status": "failed", "reason": "unreadable", "output": None}
RECORDED = {
    "source": "/bids",
    "model": "models:/mmh-global@champion",
    "model_hash": "b" * 64,
    "version": "1.0",
    "images": 2,
    "started": "2026-01-02T03:00:00+00:00",
    "finished": "2026-01-02T04:00:00+00:00",
    "failure": None,
    "settings": {"quality": to_dict(Config())["quality"], "harmonize": {"steps": 10}},
    "versions": {"torch": "2.14"},
}
SIDECAR = {
    "QC": {"preservation": 0.9, "registration": 0.5, "neck_mm": 3},
    "BrainHistogram": {"Before": [0.8] * 50, "After": [0.8] * 50},
    "Provenance": {"input_sha256": "a" * 64},
}
DESCRIPTION = {
    "Name": "MRI, harmonized",
    "GeneratedBy": [{"Name": "mmh_ray", "Version": "1.0"}],
    "SourceDatasets": [{"URL": "file:///bids"}],
}
LINES = (b"\n", b"\r", b"{}\n", b'{"image_id": "x", "status": "done"}\n', b"null\n", b"[" * 9000, b"\0" * 5000)


@pytest.fixture(scope="module")
def ledger(guard: Guard) -> bytes:
    """A ledger's bytes."""
    path = guard.folder / "good.parquet"
    write_ledger(path, [ROW, FAILED])
    content = path.read_bytes()
    path.unlink()
    return content


def start(guard: Guard) -> Path:
    """An empty folder of derivatives with a good record of a run."""
    out = guard.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    (out / RECORD).parent.mkdir(parents=True)
    (out / RECORD).write_bytes(as_json(RECORDED))
    return out


def take_over(out: Path) -> None:
    """Take over the ledger as the next run does, and check that the rows it keeps can be read again."""
    with Journal(out) as journal:
        kept = journal.rows()
        journal.append(ROW)
    written = {row["image_id"]: row for row in read_ledger(out / LEDGER)}
    assert written == kept | {"sub-1_T1w": ROW}


def look(out: Path) -> None:
    """Read the folder as `mmh status` does."""
    run_status(out).as_text().encode()


def report(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write the report as `mmh status --report` does, which must succeed in spite of any damage."""
    record = RunRecord.read(out)
    assert write_report_of(OutputFolder(out, str(out)), record, rows, quality_bounds(record))


@fuzz(rows=tree_edits(), edits=byte_edits(LINES))
def test_journals(guard: Guard, ledger: bytes, rows: list[Edit], edits: list[Edit]) -> None:
    out = start(guard)
    (out / LEDGER).write_bytes(ledger)
    tree = reshaped(copy.deepcopy([ROW, FAILED]), rows)
    lines = b"\n".join(map(as_json, tree if isinstance(tree, list) else [tree]))
    (out / JOURNAL).write_bytes(edited(lines, edits))
    guard(lambda: current_rows(out), lambda: look(out), lambda: take_over(out))


@fuzz(edits=byte_edits())
def test_ledgers(guard: Guard, ledger: bytes, edits: list[Edit]) -> None:
    out = start(guard)
    (out / LEDGER).write_bytes(edited(ledger, edits))
    guard(lambda: current_rows(out), lambda: look(out), lambda: take_over(out))


@fuzz(fields=tree_edits(), edits=byte_edits(LINES, 1))
def test_records(guard: Guard, fields: list[Edit], edits: list[Edit]) -> None:
    out = start(guard)
    content = as_json(reshaped(copy.deepcopy(RECORDED), fields))
    (out / RECORD).write_bytes(edited(content, edits))
    guard(lambda: look(out), lambda: report(out, [ROW, FAILED]))


@fuzz(share=0.25, fields=tree_edits(), edits=byte_edits(LINES, 1))
def test_sidecars(guard: Guard, fields: list[Edit], edits: list[Edit]) -> None:
    out = start(guard)
    image = out / IMAGE
    image.parent.mkdir(parents=True)
    image.touch()
    content = as_json(reshaped(copy.deepcopy(SIDECAR), fields))
    sidecar_path(image).write_bytes(edited(content, edits))
    guard(lambda: report(out, [ROW, FAILED]))


@fuzz(fields=tree_edits(), edits=byte_edits(LINES, 1))
def test_descriptions(guard: Guard, fields: list[Edit], edits: list[Edit]) -> None:
    out = start(guard)
    content = as_json(reshaped(copy.deepcopy(DESCRIPTION), fields))
    (out / "dataset_description.json").write_bytes(edited(content, edits))
    guard(lambda: check_dataset(out, "/bids"))
