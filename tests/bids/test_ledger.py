"""The ledger survives a killed driver, and two runs never share one."""

import fcntl
import json
import os
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmh_ray.bids import ledger
from mmh_ray.bids.ledger import LEDGER_SCHEMA, Journal, current_rows, is_locked, read_ledger, write_ledger
from mmh_ray.bids.rows import problem_of
from mmh_ray.errors import ConfigError, DataError

pytestmark = pytest.mark.fast


def row(image_id="sub-1_T1w", status="done", **more):
    return {"image_id": image_id, "status": status, **more}


def test_ledger_there_and_back(tmp_path):
    path = tmp_path / "ledger.parquet"
    assert read_ledger(path) == []
    write_ledger(path, [row("b", seconds=1.5), row("a", "refused", reason="FLAIR")])
    first, second = read_ledger(path)
    assert (first["image_id"], first["status"], first["reason"], first["output"]) == ("a", "refused", "FLAIR", None)
    assert (second["image_id"], second["seconds"]) == ("b", 1.5)
    assert list(first) == LEDGER_SCHEMA.names
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.parquet"]


def test_a_ledger_of_the_version_before_is_read_and_becomes_one_of_this(tmp_path):
    columns = [field for field in LEDGER_SCHEMA if field.name != "input_state"]
    old_schema = pa.schema(columns, metadata={b"mmh_ledger_version": b"4"})
    old_row = dict.fromkeys(old_schema.names) | row(status="failed", reason="cut", remedy="Copy it again.")
    pq.write_table(pa.Table.from_pylist([old_row], old_schema), tmp_path / "ledger.parquet")
    assert current_rows(tmp_path) == [old_row | {"input_state": None}]
    with Journal(tmp_path) as journal:
        journal.append(row("b", "done", input_state="s"))
    first, second = read_ledger(tmp_path / "ledger.parquet")
    assert (first["image_id"], first["input_state"], second["input_state"]) == ("b", "s", None)
    assert problem_of(second).text == "cut Copy it again."
    assert pq.read_schema(tmp_path / "ledger.parquet").metadata[b"mmh_ledger_version"] == b"5"


@pytest.mark.parametrize("bad", [row(status="ok"), row(image_id=""), row(sites="x"), {"image_id": "a"}, 3])
def test_incomplete_rows_are_refused(tmp_path, bad):
    with pytest.raises(DataError, match="ledger row"):
        write_ledger(tmp_path / "ledger.parquet", [bad])
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_or_damaged_ledger_is_refused(tmp_path):
    path = tmp_path / "ledger.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="readable ledger"):
        read_ledger(path)
    pq.write_table(pa.table({"image_id": ["a"]}), path)
    with pytest.raises(DataError, match="version none"):
        read_ledger(path)
    pq.write_table(pa.Table.from_pylist([], LEDGER_SCHEMA.with_metadata({b"mmh_ledger_version": b"9"})), path)
    with pytest.raises(DataError, match="version 9"):
        read_ledger(path)


def test_close_folds_the_journal_into_the_ledger(tmp_path):
    write_ledger(tmp_path / "ledger.parquet", [row("a", "failed"), row("b")])
    with Journal(tmp_path) as journal:
        journal.append(row("a", seconds=2.0))
        journal.append(row("c", "refused"))
        assert {key: value["status"] for key, value in journal.rows().items()} == {
            "a": "done",
            "b": "done",
            "c": "refused",
        }
        assert [entry["status"] for entry in read_ledger(tmp_path / "ledger.parquet")] == ["failed", "done"]
    journal.close()
    assert [entry["status"] for entry in read_ledger(tmp_path / "ledger.parquet")] == ["done", "done", "refused"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.parquet"]


def test_a_killed_driver_loses_nothing(tmp_path):
    script = (
        "import os, signal, sys; from mmh_ray.bids.ledger import Journal; journal = Journal(sys.argv[1]);"
        "[journal.append({'image_id': f'i{n}', 'status': 'done'}) for n in range(5)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode < 0
    assert not (tmp_path / "ledger.parquet").exists()
    with Journal(tmp_path) as journal:
        assert sorted(journal.rows()) == [f"i{n}" for n in range(5)]
    assert len(read_ledger(tmp_path / "ledger.parquet")) == 5


@pytest.mark.slow
def test_a_half_written_line_costs_only_itself(tmp_path, caplog):
    path = tmp_path / ".ledger.jsonl"

    def left_by_a_killed_driver(content: bytes) -> Journal:
        (tmp_path / "ledger.parquet").unlink()
        path.write_bytes(content)
        return Journal(tmp_path)

    with Journal(tmp_path) as journal:
        journal.append(row("a"))
        journal.append(row("é", reason="ü"))
        whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[1])):
        with left_by_a_killed_driver(whole[: -1 - cut]) as journal:
            journal.append(row("b"))
            left = path.read_bytes()
        with left_by_a_killed_driver(left) as journal:
            assert sorted(journal.rows()) == ["a", "b"], cut
    assert "half-written" in caplog.text


def test_a_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / ".ledger.jsonl").write_text(json.dumps(row("a")))
    with Journal(tmp_path) as journal:
        journal.append(row("b"))
    assert [entry["image_id"] for entry in read_ledger(tmp_path / "ledger.parquet")] == ["a", "b"]


def test_a_refused_row_leaves_the_journal_whole(tmp_path):
    with Journal(tmp_path) as journal:
        with pytest.raises(DataError):
            journal.append(row(status="unknown"))
        with pytest.raises(ValueError, match="JSON"):
            journal.append(row(seconds=float("nan")))
        assert journal.rows() == {}
        assert os.path.getsize(tmp_path / ".ledger.jsonl") == 0


def test_a_disk_that_is_full_is_named_whatever_is_still_to_be_written(tmp_path):
    script = (
        "import resource, sys\nfrom mmh_ray.bids.ledger import Journal\nwith Journal(sys.argv[1]) as journal:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    journal.append({'image_id': 'a', 'status': 'failed', 'reason': 5000 * 'x'})"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1].startswith("mmh_ray.errors.DataError: "), ended.stderr
    assert "expected a disk that takes the ledger" in ended.stderr.splitlines()[-1]


def test_reading_the_lock_makes_no_run_fail(tmp_path):
    with open(tmp_path / ".ledger.jsonl", "ab") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with Journal(tmp_path) as journal:
            journal.append(row("a"))
    assert len(read_ledger(tmp_path / "ledger.parquet")) == 1


def test_two_runs_in_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "LOCKING_S", 0.1)
    with Journal(tmp_path) as journal:
        journal.append(row("a"))
        with pytest.raises(ConfigError, match="another run"):
            Journal(tmp_path)
    with Journal(tmp_path) as journal:
        assert list(journal.rows()) == ["a"]


def test_the_rows_of_a_run_can_be_read_while_it_goes_on(tmp_path):
    write_ledger(tmp_path / "ledger.parquet", [row("a", "failed"), row("b")])
    assert not is_locked(tmp_path)
    with Journal(tmp_path) as journal:
        journal.append(row("a"))
        journal.append(row("c", "refused"))
        assert is_locked(tmp_path)
        found = {entry["image_id"]: entry["status"] for entry in current_rows(tmp_path)}
        assert found == {"a": "done", "b": "done", "c": "refused"}
    assert not is_locked(tmp_path)
    assert len(current_rows(tmp_path)) == 3


def test_runs_that_follow_each_other_closely_lose_no_row(tmp_path, monkeypatch):
    """Each thread opens the journal as often as it can; a lock on a removed journal would lose rows."""
    written: list[str] = []
    monkeypatch.setattr(ledger, "LOCKING_S", 0.0)

    def take(name: str) -> None:
        for number in range(40):
            try:
                with Journal(tmp_path) as journal:
                    journal.append(row(f"{name}{number}"))
                    written.append(f"{name}{number}")
            except ConfigError:
                continue

    threads = [threading.Thread(target=take, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written
    assert sorted(written) == [entry["image_id"] for entry in read_ledger(tmp_path / "ledger.parquet")]


@pytest.mark.parametrize(("good", "bad"), [("Orléans".encode(), b"Orl\xff\xffans"), (b"model_hash", b"model_\x80ash")])
def test_a_ledger_with_text_that_is_not_utf8_is_refused(tmp_path, good, bad):
    path = tmp_path / "ledger.parquet"
    write_ledger(path, [row("a", site="Orléans")])
    damaged = path.read_bytes().replace(good, bad)
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="readable ledger"):
        current_rows(tmp_path)


@pytest.mark.parametrize("seconds", [2**53 + 1, 2**63, 10**30, 1e300])
def test_a_duration_that_the_ledger_cannot_store_does_not_stop_the_journal_from_being_merged(tmp_path, seconds):
    (tmp_path / ".ledger.jsonl").write_text(json.dumps(row("a", seconds=seconds)) + "\n")
    with Journal(tmp_path) as journal:
        journal.append(row("b", seconds=2.0))
    found = {entry["image_id"]: entry["seconds"] for entry in read_ledger(tmp_path / "ledger.parquet")}
    assert found == {"a": None, "b": 2.0}
