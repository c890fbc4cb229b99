"""What the driver of the batch job does besides running actors; no actors are started.

It locks the output folder, removes outdated files, and writes the ledger and the report.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from mmh_ray.bids.derivatives import bids_uri, derivative_files, sidecar_path
from mmh_ray.bids.filters import Filters
from mmh_ray.bids.ledger import Journal, current_rows
from mmh_ray.bids.rows import LedgerRow, Status, problem_of
from mmh_ray.bids.status import RunRecord, run_status
from mmh_ray.cli import main
from mmh_ray.config import Config
from mmh_ray.distributed import harmonize as driver
from mmh_ray.distributed.harmonize import harmonize, plan
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.harmonization.job import Job, Task
from mmh_ray.harmonization.outputs import LEFT, ledger_row
from mmh_ray.harmonization.run import RunInputs

pytestmark = pytest.mark.fast


@pytest.fixture
def job(tmp_path: Path, tiny_bundle: Path, tiny_config: Config) -> Job:
    """A job for an archive of two images that differ only in `space`, with output in the template's space."""
    for name in ("sub-01_T1w", "sub-01_space-orig_T1w"):
        path = tmp_path / f"bids/sub-01/anat/{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    config = replace(tiny_config, harmonize=replace(tiny_config.harmonize, space="template"))
    return Job(str(tmp_path / "bids"), str(tmp_path / "out"), str(tiny_bundle), config)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the actors by a function and returns its controls.

    `does` gives the fields of an image's row; `closed` tells whether the run has released the actors.
    """
    told: dict[str, Any] = {"does": lambda row: {}, "closed": False}

    def run_pool(
        tasks: list[Task], job: Job, inputs: RunInputs, on_actor_ready: Callable[[], object] = lambda: None
    ) -> Iterator[list[LedgerRow]]:
        try:
            for task in tasks:
                fields = {"status": "done"} | told["does"](task)
                problem = problem_of(task)
                rows = [ledger_row(task, domain, Status.FAILED, problem) for domain in inputs.domains]
                yield [row | fields if problem is None else row for row in rows]
        finally:
            told["closed"] = True

    monkeypatch.setattr(driver, "connect", lambda: None)
    monkeypatch.setattr(driver, "probe_all", lambda *_: None)
    monkeypatch.setattr(driver, "find_problems", lambda *_: {})
    monkeypatch.setattr(driver, "run_pool", run_pool)
    return told


def made(job: Job, source: str, **provenance: str) -> list[Path]:
    """Write the files of a derivative in the template's space, with a sidecar that names its source.

    Returns the paths of the files.
    """
    space = "sub-01_space-MNI152NLin2009aSym_desc-harmonized_T1w"
    files = derivative_files(Path(job.out, f"sub-01/anat/{space}.nii.gz"))
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    sidecar_path(files[1]).write_text(json.dumps({"Sources": [bids_uri(source, source)], "Provenance": provenance}))
    return list(files)


def test_two_images_never_get_one_output(job: Job, work: dict[str, Any]) -> None:
    assert {row["image_id"]: row["action"] for row in plan(job)} == {
        "sub-01_T1w": "harmonize",
        "sub-01_space-orig_T1w": "fail",
    }
    assert harmonize(job) == {"done": 1, "failed": 1}
    (failed,) = (row for row in current_rows(job.out) if row["status"] == "failed")
    assert problem_of(failed).text.startswith(
        "its output would have the same name as the output of sub-01_T1w; expected different names"
    )
    native = replace(job, config=replace(job.config, harmonize=replace(job.config.harmonize, space="native")))
    assert harmonize(native) == {"done": 2}


def test_what_was_made_of_an_image_that_is_not_looked_at_now_is_left_and_its_row_says_so(
    job: Job, work: dict[str, Any]
) -> None:
    first, second = (str(Path(job.bids, f"sub-01/anat/sub-01{name}_T1w.nii.gz")) for name in ("", "_space-orig"))
    files = made(job, first, model_hash="e" * 64)
    work["does"] = lambda row: {"status": "failed", "reason": "no worker could be started"}
    harmonize(job)
    assert all(path.exists() for path in files)
    rows = {row["source"]: row for row in current_rows(job.out)}
    assert rows[first]["reason"] == f"no worker could be started {LEFT}"
    assert Path(job.out, rows[first]["output"]) == files[1]
    assert (LEFT in rows[second]["reason"], rows[second]["output"]) == (False, None)  # it is the other's
    work["does"] = lambda row: {"status": "refused", "reason": "no brain", "input_sha256": "d" * 64}
    harmonize(job)
    assert not any(path.exists() for path in files)


def test_a_run_that_stops_lets_go_of_its_actors_before_it_lets_go_of_the_folder(
    job: Job, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Journal.close
    closed_first: list[bool] = []

    def full(*_: object) -> None:
        raise DataError("the ledger's disk", "space", "Free some.")

    monkeypatch.setattr(Journal, "append", full)
    monkeypatch.setattr(Journal, "close", lambda journal: (closed_first.append(work["closed"]), close(journal))[1])
    with pytest.raises(DataError, match="the ledger's disk"):
        harmonize(job)
    assert closed_first == [True]


def test_what_an_actor_that_died_left_half_written_is_cleared_at_the_end(job: Job, work: dict[str, Any]) -> None:
    left = Path(job.out, "sub-01/anat/.partial-abc.nii.gz")

    def dies(task: Task) -> dict[str, Any]:
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
        return {}

    work["does"] = dies
    harmonize(job)
    assert run_status(job.out).state == "finished"
    assert not left.exists()


def test_the_folder_of_another_archive_is_left_alone(job: Job, work: dict[str, Any], tmp_path: Path) -> None:
    harmonize(job)
    description = Path(job.out, "dataset_description.json")
    before, rows = description.read_text(), current_rows(job.out)
    moved = replace(job, bids=str(Path(job.bids).rename(tmp_path / "moved")))
    for act in (harmonize, plan):
        with pytest.raises(ConfigError, match=r"holds what was made of .*bids; expected what was made of .*moved"):
            act(moved)
    assert (description.read_text(), current_rows(job.out)) == (before, rows)
    description.write_text(before.replace(Path(job.bids).as_uri(), Path(moved.bids).as_uri()))
    assert harmonize(moved) == {"done": 1, "failed": 1}


def test_a_run_that_is_refused_the_folder_writes_nothing_there(
    job: Job, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmh_ray.bids.ledger.LOCKING_S", 0.1)
    with Journal(job.out), pytest.raises(ConfigError, match="another run is writing there"):
        harmonize(job)
    assert [path.name for path in Path(job.out).iterdir()] == ["ledger.parquet"]


@pytest.mark.parametrize("inside", ["", "sub-01", "harmonized", "code/../sub-01/anat", "derivatives", "..", "../.."])
def test_an_output_in_the_archive_or_around_it_is_refused(job: Job, inside: str) -> None:
    before = sorted(Path(job.bids).rglob("*"))
    with pytest.raises(ConfigError, match=r"a folder outside the archive or below its derivatives/"):
        harmonize(replace(job, out=str(Path(job.bids, inside))))
    assert sorted(Path(job.bids).rglob("*")) == before


def test_where_ray_does_not_start_record_and_report_say_so(
    job: Job, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise ConnectionError("no cluster at this address")

    monkeypatch.setattr(driver, "connect", absent)
    with pytest.raises(ConnectionError):
        harmonize(job)
    assert "no cluster at this address" in run_status(job.out).as_text()
    assert "no cluster at this address" in Path(job.out, "report.html").read_text()


def test_a_report_that_fails_hides_no_other_error(
    job: Job, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a key that is not there")

    monkeypatch.setattr("mmh_ray.quality.run_report.write_report", broken)
    monkeypatch.setattr(Journal, "append", lambda *_: (_ for _ in ()).throw(DataError("a full disk", "space", "Free.")))
    with pytest.raises(DataError, match="a full disk"):
        harmonize(job)
    assert "no report (KeyError: 'a key that is not there')" in caplog.text


def test_a_run_whose_time_is_up_leaves_ledger_record_and_report(
    job: Job, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append

    def terminated(journal: Journal, row: LedgerRow) -> None:
        append(journal, row)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Journal, "append", terminated)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        harmonize(job)
    assert signal.getsignal(signal.SIGTERM) == before
    assert run_status(job.out).state == "failed"
    assert not Path(job.out, ".ledger.jsonl").exists()
    assert "stopped by SIGTERM" in Path(job.out, "report.html").read_text()


def test_a_run_that_fails_says_so_in_record_and_report(
    job: Job, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DataError("the ledger's disk", "space", "Free some.")

    monkeypatch.setattr(Journal, "append", broken)
    with pytest.raises(DataError):
        harmonize(job)
    status = run_status(job.out)
    assert status.state == "failed"
    assert "the ledger's disk" in status.as_text()
    assert "the ledger&#39;s disk" in Path(job.out, "report.html").read_text()


def test_the_report_of_a_killed_run_is_written_when_asked_for(job: Job, work: dict[str, Any]) -> None:
    harmonize(job)
    page = Path(job.out, "report.html")
    page.unlink()
    replace(RunRecord.read(job.out), finished=None).write(job.out)
    with Journal(job.out) as journal:  # as a run goes on
        journal.append({"image_id": "sub-99_T1w", "status": "failed", "reason": "killed", "source": "sub-99_T1w.nii"})
        assert main(["status", job.out, "--report"]) == 0
    assert all(name in page.read_text() for name in ("sub-01_T1w", "sub-99_T1w"))
    page.unlink()
    page.mkdir()
    assert main(["status", job.out, "--report"]) == 1


def test_only_the_sessions_that_are_named_are_looked_at(job: Job, work: dict[str, Any]) -> None:
    for session in ("1", "2"):
        path = Path(job.bids, f"sub-02/ses-{session}/anat/sub-02_ses-{session}_T1w.nii.gz")
        path.parent.mkdir(parents=True)
        path.write_text(session)
    assert [row["image_id"] for row in plan(replace(job, sessions=("2",)))] == ["sub-02_ses-2_T1w"]
    with pytest.raises(ConfigError, match=r"sessions \['9'\]; expected sessions of the archive"):
        plan(replace(job, sessions=("9",)))


def test_the_command_closes_with_a_summary_of_its_own_run(
    job: Job, work: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary is made from the ledger and the report that the run wrote."""
    work["does"] = lambda row: (
        {"flags": ["dark"]} if row["image_id"] == "sub-01_T1w" else {"status": "refused", "reason": "no brain"}
    )
    assert main(["harmonize", job.bids, job.out, "--model", job.model, "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"] == {"done": 1, "refused": 1}
    assert (summary["flagged"], summary["reasons"]) == (1, {"no brain": 1})
    assert summary["report"] == str(Path(job.out, "report.html"))
    work["does"] = lambda row: {"status": "skipped"}
    assert main(["harmonize", job.bids, job.out, "--model", job.model]) == 0
    assert "up to date already: 2\nWhere to look:" in capsys.readouterr().out


def test_filters_and_memory_decide_which_images_are_worked_on(job: Job, work: dict[str, Any]) -> None:
    filters = Filters({"T1w": {"space": (None,)}})
    assert [row["image_id"] for row in plan(replace(job, filters=filters))] == ["sub-01_T1w"]
    with pytest.raises(ConfigError, match="no image left to harmonize"):
        plan(replace(job, filters=Filters({"T1w": {"subject": ("77",)}})))
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 1000))
    scan = Path(job.bids, "sub-01/anat/sub-01_T1w.nii.gz")
    with gzip.open(scan, "wb") as stream:
        stream.write(header.binaryblock + bytes(4))
    little = replace(job, config=replace(job.config, harmonize=replace(job.config.harmonize, memory_gb=8.0)))
    rows = {row["image_id"]: row for row in plan(little)}
    assert rows["sub-01_T1w"]["action"] == "fail"
    assert "harmonize.memory_gb=8 leaves for images" in rows["sub-01_T1w"]["reason"]
    least = replace(little, config=replace(job.config, harmonize=replace(job.config.harmonize, memory_gb=1.0)))
    with pytest.raises(ConfigError, match="at least"):
        plan(least)
