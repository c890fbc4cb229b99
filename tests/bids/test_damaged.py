"""Damaged rows and records: a damaged field is lost alone, whatever it contains."""

from __future__ import annotations

import json
import logging
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmh_ray.bids import ledger
from mmh_ray.bids.ledger import JOURNAL, LEDGER, LEDGER_SCHEMA, Journal, current_rows, is_locked, read_ledger
from mmh_ray.bids.ledger_rows import COLUMNS
from mmh_ray.bids.status import RECORD, RunRecord, run_status
from mmh_ray.errors import DataError, MMHError

pytestmark = pytest.mark.fast

GOOD = {
    "image_id": "a",
    "target": "alder",
    "site": "north",
    "sequence": "T1w",
    "source": "/bids/sub-a/anat/sub-a_T1w.nii.gz",
    "output": "sub-a/anat/sub-a_desc-harmonized_T1w.nii.gz",
    "status": "done",
    "reason": None,
    "expected": None,
    "remedy": None,
    "flags": ["noise"],
    "seconds": 1.5,
    "finished": "2026-01-01T20:00:10+00:00",
    "input_sha256": "b" * 64,
    "input_state": "e" * 64,
    "model_hash": "c" * 64,
    "settings_hash": "d" * 64,
}
NASTY: list[Any] = [
    "abc",
    "",
    "\ud800",
    "\x1b[2J\x07",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "9" * 5000,
    "2026-01-01",
    "2026-01-01T20:00:10",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    True,
    0,
    -1,
    10**400,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    [],
    [None],
    [1, "x"],
    ["\ud800"],
    [[["x"]]],
    {},
    {"a": {"b": None}},
]
"""What may stand in any field of a file from a stranger."""
DEEP = "[" * 50_000
RECORD_FIELDS = {
    "source": "/bids",
    "model": "m",
    "model_hash": "a" * 64,
    "version": "0.1",
    "images": 10,
    "started": "2026-01-01T20:00:00+00:00",
    "finished": "2026-01-01T21:00:00+00:00",
    "failure": "OSError: full",
    "settings": {"harmonize": {"slots": 1}},
    "versions": {"ray": "2"},
}


def case(value: Any) -> str:
    """A short name of a value."""
    return repr(value)[:24].encode("ascii", "backslashreplace").decode()


def as_json(value: Any) -> str:
    """JSON as untrusted files may contain it, with NaN and lone surrogates."""
    return json.dumps(value)


def line_of(field: str, value: Any) -> str:
    """A journal's line with one field replaced; the image is named after that field."""
    good_row = GOOD | {"image_id": f"{field} is damaged"}
    texts = {name: as_json(value if name == field else good) for name, good in good_row.items()}
    return "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}\n"


@pytest.mark.parametrize("value", NASTY, ids=case)
def test_a_damaged_value_costs_only_itself(value: Any, tmp_path: Path) -> None:
    """Each row has the value in another field. The next run finds the other fields, and merges them into its ledger."""
    other = GOOD | {"image_id": "other"}
    damaged_lines = [line_of(field, value) for field in COLUMNS]
    (tmp_path / JOURNAL).write_text("".join(damaged_lines) + json.dumps(other) + "\n")
    with Journal(tmp_path) as journal:
        journal.append(GOOD | {"image_id": "new"})
        rows = journal.rows()
    assert (rows["other"], rows["new"]) == (other, GOOD | {"image_id": "new"})
    assert {row["image_id"]: row for row in current_rows(tmp_path)} == rows
    damaged_rows = {field: rows.pop(f"{field} is damaged", None) for field in COLUMNS}
    assert damaged_rows.pop("status") is None  # without a status it is no row, and without a name
    assert damaged_rows.pop("image_id") is None
    for field, row in damaged_rows.items():
        assert row is not None, field
        assert row[field] is None or COLUMNS[field](row[field])
        assert row | {field: GOOD[field], "image_id": GOOD["image_id"]} == GOOD
    named_by_the_value = set(rows) - {"other", "new"}
    assert named_by_the_value == ({value} if COLUMNS["image_id"](value) else set())
    RunRecord(**RECORD_FIELDS).write(tmp_path)
    lines = run_status(tmp_path).as_text().splitlines()
    assert all(line.isprintable() for line in lines)


NO_ROWS = [
    "null",
    "3",
    "[]",
    '"x"',
    "{}",
    '{"image_id": "a"}',
    '{"status": "done"}',
    '{"image_id": "a", "status": "DONE"}',
    '{"image_id": ["a"], "status": ["done"]}',
    "{",
    DEEP,
    '{"image_id": ' + DEEP,
    "NaN",
    "9" * 5000,
    "x" * (2**20 + 5),
    "\0\0",
]


@pytest.mark.parametrize("line", NO_ROWS, ids=case)
def test_a_line_that_is_no_row_costs_only_itself(line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / JOURNAL).write_bytes(line.encode() + b"\n\xff\xfe\n" + json.dumps(GOOD).encode() + b"\n")
    assert current_rows(tmp_path) == [GOOD]
    assert "half-written or damaged rows are left out" in caplog.text
    with Journal(tmp_path) as journal:
        assert list(journal.rows()) == ["a"]


def test_warnings_count_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    damaged = [GOOD | {"image_id": f"i{n}", "seconds": "abc", "flags": 3 if n else None} for n in range(3)]
    lines = [json.dumps(row) for row in (*damaged, {"image_id": 3}, GOOD)]
    (tmp_path / JOURNAL).write_text("\n".join(lines))
    assert len(current_rows(tmp_path)) == 4
    journal = tmp_path / JOURNAL
    assert caplog.messages == [
        f"{journal}: 1 half-written or damaged rows are left out",
        f"{journal}: 2 rows have a damaged value of `flags`, which is left out",
        f"{journal}: 3 rows have a damaged value of `seconds`, which is left out",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("seconds", math.nan), ("seconds", -math.inf), ("finished", "soon"), ("output", "../x"), ("status", "ok")],
)
def test_a_ledger_is_read_as_a_journal_is(field: str, value: Any, tmp_path: Path) -> None:
    rows = [GOOD | {field: value}, GOOD | {"image_id": "other"}]
    pq.write_table(pa.Table.from_pylist(rows, LEDGER_SCHEMA), tmp_path / LEDGER)
    found = {row["image_id"]: row for row in read_ledger(tmp_path / LEDGER)}
    assert found.pop("other") == GOOD | {"image_id": "other"}
    assert found == ({} if field == "status" else {"a": GOOD | {field: None}})


def test_every_column_is_checked() -> None:
    assert list(COLUMNS) == LEDGER_SCHEMA.names


def test_a_source_in_another_encoding_is_written_down(tmp_path: Path) -> None:
    name = os.fsdecode(b"/bids/\xff.nii.gz")
    with Journal(tmp_path) as journal:
        journal.append(GOOD | {"source": name, "reason": f"{name}: unreadable"})
    (row,) = read_ledger(tmp_path / LEDGER)
    assert (row["source"], row["reason"]) == ("/bids/\\udcff.nii.gz", "/bids/\\udcff.nii.gz: unreadable")


def test_a_record_of_an_archive_with_a_name_in_another_encoding_is_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"/bids/\xff")
    RunRecord(**(RECORD_FIELDS | {"source": name, "failure": f"OSError: {name}"})).write(tmp_path)
    assert RunRecord.read(tmp_path).source == "/bids/\\udcff"
    assert run_status(tmp_path).state == "failed"


def test_reading_is_not_blocked_by_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / JOURNAL)
    assert not is_locked(tmp_path)
    assert current_rows(tmp_path) == []


@pytest.mark.parametrize("value", NASTY, ids=case)
def test_a_record_is_read_or_refused_with_a_remedy(value: Any, tmp_path: Path) -> None:
    ledger.write_ledger(tmp_path / LEDGER, [GOOD, GOOD | {"image_id": "b", "finished": "9999-12-31T23:59:59-14:00"}])
    path = tmp_path / RECORD
    path.parent.mkdir()
    for field in RECORD_FIELDS:
        texts = {name: as_json(value if name == field else good) for name, good in RECORD_FIELDS.items()}
        path.write_text("{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}")
        try:
            lines = run_status(tmp_path).as_text().splitlines()
        except DataError as error:
            lines = str(error).splitlines()
        assert lines, field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", None),
        ("model", 3),
        ("version", "\ud800"),
        ("images", True),
        ("images", 1.5),
        ("images", -1),
        ("images", 10**400),
        ("started", "2026-01-01T20:00:00"),
        ("started", None),
        ("finished", "soon"),
        ("failure", ["x"]),
        ("settings", [1]),
        ("settings", {"a": ["\ud800"]}),
        ("versions", {"ray": 2}),
    ],
    ids=case,
)
def test_a_damaged_record_names_the_field(field: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / RECORD
    path.parent.mkdir()
    path.write_text(json.dumps(RECORD_FIELDS | {field: value}))
    with pytest.raises(DataError, match=f"damaged value of {field}; expected the record of a run. Remove it"):
        run_status(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "null", "[1]", "{}", DEEP, '{"source": ' + DEEP, '{"more": 1}', "NaN"], ids=case
)
def test_a_record_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / RECORD
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(DataError, match="the record of a run"):
        run_status(tmp_path)


def test_settings_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    nested: dict[str, Any] = {}
    for _ in range(400):
        nested = {"a": nested}
    RunRecord(**(RECORD_FIELDS | {"settings": nested})).write(tmp_path)
    with pytest.raises(DataError, match="damaged value of settings"):
        run_status(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling"])
def test_a_record_that_is_no_regular_file_does_not_block(kind: str, tmp_path: Path) -> None:
    path = tmp_path / RECORD
    path.parent.mkdir()
    {"pipe": os.mkfifo, "folder": os.mkdir, "dangling": lambda place: os.symlink("nowhere", place)}[kind](path)
    with pytest.raises(MMHError):
        run_status(tmp_path)


@pytest.mark.parametrize(
    "finished", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "2026-01-01T21:00:00+05:00"]
)
@pytest.mark.parametrize("images", [0, 1, 10**12])
def test_absurd_times_give_no_absurd_estimate(finished: str, images: int, tmp_path: Path) -> None:
    changed = {"started": "0001-01-01T00:00:00+00:00", "finished": None, "images": images}
    RunRecord(**(RECORD_FIELDS | changed)).write(tmp_path)
    with Journal(tmp_path) as journal:
        journal.append(GOOD | {"finished": finished})
        status = run_status(tmp_path, now=datetime.fromisoformat("9999-12-31T00:00:00+00:00"))
    assert status.seconds_left is None or status.seconds_left >= 0
    assert "running, started" in status.as_text()


def test_times_of_other_zones_are_compared_as_moments(tmp_path: Path) -> None:
    """18:00 in Tokyo is earlier than 12:00 in Greenwich, although its text sorts later."""
    RunRecord(**(RECORD_FIELDS | {"started": "2026-01-01T12:00:00+00:00"})).write(tmp_path)
    with Journal(tmp_path) as journal:
        journal.append(GOOD | {"finished": "2026-01-01T18:00:00+09:00"})
        journal.append(GOOD | {"image_id": "b", "finished": "2026-01-01T08:00:00-09:00"})
    assert run_status(tmp_path).done == 1
