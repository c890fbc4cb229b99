"""`mmh status` distinguishes running, finished, failed and killed runs, and estimates the time left."""

from datetime import datetime, timedelta

import pytest

from mmh_ray.bids.ledger import Journal, write_ledger
from mmh_ray.bids.status import RunRecord, count_reasons, run_status
from mmh_ray.errors import ConfigError, DataError

pytestmark = pytest.mark.fast

START = datetime.fromisoformat("2026-01-01T20:00:00+00:00")


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def record(**more) -> RunRecord:
    return RunRecord("/data/bids", "models:/m/1", "a" * 64, "0.1", images=10, started=at(0), **more)


def row(name: str, status: str = "done", seconds: float = 60, **more):
    return {"image_id": name, "status": status, "finished": at(seconds), **more}


def test_a_running_one_knows_rate_and_time_left(tmp_path):
    record().write(tmp_path)
    with Journal(tmp_path) as journal:
        journal.append(row("old", seconds=-1000))
        for number in range(4):
            journal.append(row(f"i{number}", flags=["doubt"] if number == 0 else None))
        status = run_status(tmp_path, now=START + timedelta(seconds=80))
    assert (status.state, status.done, status.flagged) == ("running", 4, 1)
    assert status.counts == {"done": 5}
    assert status.per_second == pytest.approx(4 / 80)
    assert status.seconds_left == pytest.approx(6 * 20)
    assert "4 of 10 images, 3.0 a minute, 0:02:00 left" in status.as_text()


def test_skipped_images_do_not_count_for_the_rate(tmp_path):
    record().write(tmp_path)
    with Journal(tmp_path) as journal:
        for number in range(5):
            journal.append(row(f"i{number}", "skipped", seconds=1))
        assert run_status(tmp_path, now=START + timedelta(seconds=2)).seconds_left is None
        journal.append(row("new", seconds=60))
        status = run_status(tmp_path, now=START + timedelta(seconds=60))
    assert (status.done, status.per_second) == (6, pytest.approx(1 / 60))
    assert status.seconds_left == pytest.approx(4 * 60)


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({}, "interrupted"),
        ({"finished": at(100)}, "finished"),
        ({"finished": at(100), "failure": "OSError: disk full"}, "failed"),
    ],
)
def test_the_state_of_a_run_that_has_ended(tmp_path, more, state):
    record(**more).write(tmp_path)
    write_ledger(tmp_path / "ledger.parquet", [row("a", seconds=50)])
    status = run_status(tmp_path)
    assert status.state == state
    assert status.seconds_left is None
    assert status.per_second == pytest.approx(1 / (100 if more else 50))
    assert ("disk full" in status.as_text()) == (state == "failed")
    assert f"{state}, started 2026-01-01 20:00:00 UTC: 1 of 10 images" in status.as_text()


def test_equal_reasons_are_counted_together(tmp_path):
    parts = {"expected": "a file", "remedy": "Copy it."}
    rows = [row(name, "failed", source=f"/x/{name}", reason=f"/x/{name}: unreadable", **parts) for name in "abc"]
    rows += [row("d", "refused", reason="sequence FLAIR"), row("e")]
    filled = [{"source": None, "reason": None, **entry} for entry in rows]
    assert count_reasons(filled) == {"unreadable; expected a file. Copy it.": 3, "sequence FLAIR": 1}


def test_a_folder_without_a_run_and_a_damaged_record_say_so(tmp_path):
    with pytest.raises(ConfigError, match=r"no logs/run\.json"):
        run_status(tmp_path)
    record().write(tmp_path)
    (tmp_path / "logs/run.json").write_text('{"source": 1}')
    with pytest.raises(DataError, match="record of a run"):
        run_status(tmp_path)


def test_a_folder_whose_name_no_disk_takes_holds_no_run(tmp_path):
    with pytest.raises(ConfigError, match="a folder that `mmh harmonize`"):
        run_status(tmp_path / ("x" * 5000))
