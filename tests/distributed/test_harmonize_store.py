"""`mmh harmonize` from and to an object store: real servers on the loopback, the workers in this process."""

from __future__ import annotations

import gzip
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest

from mmh_ray import staging
from mmh_ray.bids import store_lock
from mmh_ray.bids.ledger import read_ledger
from mmh_ray.bids.output_folder import output_folder
from mmh_ray.bids.rows import LedgerRow
from mmh_ray.bids.status import run_status
from mmh_ray.bids.store_lock import StoreLock
from mmh_ray.cli import main
from mmh_ray.config import Config
from mmh_ray.distributed import harmonize as driver
from mmh_ray.distributed.harmonize import harmonize, plan
from mmh_ray.distributed.manifest import probe
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.harmonization.job import Job, Task
from mmh_ray.harmonization.run import RunInputs
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.models.bundle import bundle_files
from mmh_ray.object_store import Store
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical
from tests.gcs_server import SECRET, GcsServer
from tests.s3_files import BUCKET, content, download, keys, upload

pytestmark = pytest.mark.slow

BIDS = "s3://bucket/bids"
OUT = "s3://bucket/derivatives/out"
PREFIX = "derivatives/out"
SAME = ("image_id", "target", "site", "sequence", "status", "flags", "input_sha256", "model_hash", "settings_hash")
"""Columns of a ledger that do not tell where and when."""


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good scans, one of them with a brain mask, and one that cannot be read."""
    root = tmp_path_factory.mktemp("archive") / "bids"
    for number in (1, 2):
        anatomy = simulate_anatomy(Person(number), 6.0)
        path = root / f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        scan = 500 * canonical(anatomy, "T1w", 6.0)
        nib.save(nib.Nifti1Image(scan.astype(np.float32), anatomy.affine), path)
    mask = root / "derivatives/masks/sub-02_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(anatomy.brain.astype(np.uint8), anatomy.affine), mask)
    broken = root / "sub-03/anat/sub-03_T1w.nii.gz"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no scan")
    (root / "participants.tsv").write_text("participant_id\tsite\nsub-01\tOslo\nsub-02\tBonn\nsub-03\tBonn\n")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Scans", "BIDSVersion": "1.10.0"}))
    return root


@pytest.fixture
def job(s3: Any, bids: Path, tiny_bundle: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The archive in the store, to be harmonized into the store."""
    monkeypatch.setattr(store_lock, "LOCKING_S", 0.3)
    upload(s3, bids, "bids")
    return Job(BIDS, OUT, str(tiny_bundle), tiny_config)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The real worker in this process in the place of Ray's; `before` is called with the number of each image."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    told: dict[str, Any] = {"before": lambda number: None}

    def run_pool(tasks: list[Task], job: Job, inputs: RunInputs, **_: Any) -> Iterator[list[LedgerRow]]:
        files = bundle_files(inputs.model_folder)
        worker = HarmonizeWorker(files, job.config, job.out, inputs.model, inputs.domains)
        for number, task in enumerate(tasks):
            told["before"](number)
            yield worker.harmonize(task)
            assert {path.name.rpartition("-")[0] for path in temporary.iterdir()} <= {
                "mmh-out"
            }  # nothing stays on a node

    monkeypatch.setattr(driver, "connect", lambda: None)
    monkeypatch.setattr(driver, "run_pool", run_pool)
    monkeypatch.setattr(driver, "probe_all", lambda rows, _: [row.update(probe(row["uri"])) for row in rows])
    monkeypatch.setattr(driver, "find_problems", lambda *_: {})
    return told


def ledger(s3: Any, folder: Path) -> dict[str, LedgerRow]:
    """Rows of the ledger in the store by image."""
    path = folder / "fetched.parquet"
    path.write_bytes(content(s3, f"{PREFIX}/ledger.parquet"))
    return {row["image_id"]: row for row in read_ledger(path)}


def facts(rows: dict[str, LedgerRow]) -> dict[str, dict[str, Any]]:
    """Of each row what must not depend on where the files lie."""
    return {image_id: {name: row[name] for name in SAME} for image_id, row in rows.items()}


def test_the_store_gets_what_a_folder_gets(s3: Any, job: Job, pool: dict[str, Any], bids: Path, tmp_path: Path) -> None:
    """The same files, voxels and rows; only the places differ."""
    local = replace(job, bids=str(bids), out=str(tmp_path / "out"))
    assert harmonize(job) == harmonize(local) == {"done": 2, "failed": 1}
    in_folder = {path.relative_to(local.out).as_posix() for path in Path(local.out).rglob("*") if path.is_file()}
    assert keys(s3, PREFIX) == in_folder
    in_store = download(s3, PREFIX, tmp_path / "fetched")
    rows = {row["image_id"]: row for row in read_ledger(in_store / "ledger.parquet")}
    rows_in_folder = {row["image_id"]: row for row in read_ledger(Path(local.out, "ledger.parquet"))}
    assert facts(rows) == facts(rows_in_folder)
    for image_id, row in rows.items():
        assert row["output"] == rows_in_folder[image_id]["output"]
        assert row["source"] == f"{BIDS}/{image_id.partition('_')[0]}/anat/{image_id}.nii.gz"
    assert rows["sub-03_T1w"]["reason"] is not None
    assert rows["sub-03_T1w"]["reason"].startswith(f"{BIDS}/sub-03/anat/sub-03_T1w.nii.gz: ")
    for path in Path(local.out).rglob("*_T1w.nii.gz"):
        name = path.relative_to(local.out)
        np.testing.assert_array_equal(nib.load(in_store / name).get_fdata(), nib.load(path).get_fdata())
    sidecar = json.loads((in_store / "sub-02/anat/sub-02_desc-harmonized_T1w.json").read_text())
    in_folder_too = json.loads(Path(local.out, "sub-02/anat/sub-02_desc-harmonized_T1w.json").read_text())
    assert sidecar["Sources"] == in_folder_too["Sources"]
    assert sidecar["Sources"][0] == "bids:raw:sub-02/anat/sub-02_T1w.nii.gz"
    assert sidecar["BrainMask"] == in_folder_too["BrainMask"]
    description = json.loads((in_store / "dataset_description.json").read_text())
    assert description["Name"] == "Scans, harmonized"
    assert description["SourceDatasets"] == [{"URL": BIDS}]
    assert description["DatasetLinks"] == {"raw": BIDS}
    report = (in_store / "report.html").read_text()
    assert OUT in report
    assert report.count("data:image/jpeg") == Path(local.out, "report.html").read_text().count("data:image/jpeg") == 4
    told = b"".join(
        path.read_bytes() for path in in_store.rglob("*.*") if path.suffix in (".json", ".html", ".parquet")
    )
    assert not re.search(rb"/mmh-(staged|archive|out|derivatives)-", told)  # nobody is told where copies were


def test_a_rerun_does_what_is_missing_or_changed(s3: Any, job: Job, pool: dict[str, Any], tmp_path: Path) -> None:
    """A row without its sidecar, or without its image, is none; nor is one of another scan."""
    harmonize(job)
    planned = {row["image_id"]: row["action"] for row in plan(job)}
    assert planned == {"sub-01_T1w": "skip", "sub-02_T1w": "skip", "sub-03_T1w": "fail"}
    sidecar = f"{PREFIX}/sub-01/anat/sub-01_desc-harmonized_T1w.json"
    image = f"{PREFIX}/sub-02/anat/sub-02_desc-harmonized_T1w.nii.gz"
    for left in (sidecar, image):
        s3.delete_object(Bucket=BUCKET, Key=left)
    assert harmonize(job) == {"done": 2, "failed": 1}
    for left in (sidecar, image):
        content(s3, left)
    s3.put_object(Bucket=BUCKET, Key="bids/sub-01/anat/sub-01_T1w.nii.gz", Body=b"no scan any more")
    assert harmonize(job) == {"failed": 2, "skipped": 1}
    assert not [key for key in keys(s3, PREFIX) if key.startswith("sub-01/")]  # nobody takes it for the answer
    assert run_counts() == {"failed": 2, "skipped": 1}


def test_a_rerun_fetches_no_scan_that_was_not_written_to(
    s3: Any, job: Job, pool: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SETTLED_S", -1)  # as an hour after the upload
    fetched: list[str] = []
    get = Store.get

    def get_and_note(store: Store, name: str, path: Path) -> None:
        fetched.append(name)
        get(store, name, path)

    monkeypatch.setattr(Store, "get", get_and_note)
    job = replace(job, participants=("01", "02"))
    assert harmonize(job) == {"done": 2}
    assert {"sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz", "sub-02_desc-brain_mask.nii.gz"} <= set(fetched)
    fetched.clear()
    assert harmonize(job) == {"skipped": 2}
    assert not [name for name in fetched if name.endswith(".nii.gz")]
    changed = "bids/derivatives/masks/sub-02_desc-brain_mask.nii.gz"
    s3.put_object(Bucket=BUCKET, Key=changed, Body=content(s3, changed) + b"\0")  # the same voxels, other bytes
    assert harmonize(job) == {"done": 1, "skipped": 1}
    assert "sub-01_T1w.nii.gz" not in fetched


def run_counts() -> dict[str, int]:
    """What `mmh status` counts."""
    with output_folder(OUT) as output:
        return run_status(output.folder, locked=output.is_locked()).counts


def test_one_that_vanished_or_must_not_be_read_fails_alone(
    s3: Any, job: Job, pool: dict[str, Any], tmp_path: Path
) -> None:
    def remove(number: int) -> None:
        if number == 1:
            s3.delete_object(Bucket=BUCKET, Key="bids/sub-02/anat/sub-02_T1w.nii.gz")

    pool["before"] = remove
    assert harmonize(job) == {"done": 1, "failed": 2}
    row = ledger(s3, tmp_path)["sub-02_T1w"]
    assert row["reason"] == f"{BIDS}/sub-02/anat/sub-02_T1w.nii.gz: no such object"
    assert row["expected"] == "an object that can be read"
    assert row["remedy"] is not None


def test_a_second_run_is_refused_and_told_of(s3: Any, job: Job, pool: dict[str, Any]) -> None:
    refusals = []

    def start_another(number: int) -> None:
        with pytest.raises(ConfigError, match="another run is writing there") as caught:
            harmonize(job)
        refusals.append(str(caught.value))
        with output_folder(OUT) as output:
            assert run_status(output.folder, locked=output.is_locked()).state == "running"

    pool["before"] = start_another
    assert harmonize(replace(job, participants=("01",))) == {"done": 1}
    assert len(refusals) == 1
    StoreLock(Store(OUT)).release()  # nothing is held any more


def test_a_run_that_has_lost_its_folder_ends(
    s3: Any, job: Job, pool: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoreLock, "check", lambda self: (_ for _ in ()).throw(DataError("gone", "a lock", "Wait.")))
    with pytest.raises(DataError, match="gone"):
        harmonize(job)


def test_places_that_cannot_be_used_are_refused_before_anything_is_written(
    s3: Any, job: Job, pool: dict[str, Any], bids: Path
) -> None:
    for other, expected in (
        ({"out": BIDS}, "one inside the other"),
        ({"out": f"{BIDS}/sub-01"}, "one inside the other"),
        ({"out": "s3://bucket"}, "one inside the other"),
        ({"out": "s3://absent/out"}, "s3://absent/out: no bucket absent"),
        ({"bids": "s3://bucket/absent"}, "s3://bucket/absent: no such folder"),
        ({"out": "s3://key:s3cr3t@bucket/out"}, "s3://bucket/out with keys or options"),
    ):
        with pytest.raises(ConfigError, match=expected) as caught:
            harmonize(replace(job, **other))
        assert "s3cr3t" not in str(caught.value)
    assert keys(s3, PREFIX) == set()
    assert harmonize(replace(job, out=f"{BIDS}/derivatives/ours", participants=("01",))) == {"done": 1}
    with pytest.raises(ConfigError, match="holds what was made of"):
        harmonize(replace(job, bids=str(bids), out=f"{BIDS}/derivatives/ours"))


def test_the_commands_name_the_store_and_show_no_secret(
    s3: Any,
    job: Job,
    pool: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    import yaml

    from mmh_ray.config import to_dict

    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump(to_dict(job.config)))
    with caplog.at_level(logging.DEBUG):
        command = ["harmonize", BIDS, OUT, "--model", job.model, "--config", str(settings), "--json", "-v"]
        assert main([*command, "--participant-label", "01", "03"]) == 1
        summary = json.loads(capsys.readouterr().out)
        assert (summary["report"], summary["ledger"]) == (f"{OUT}/report.html", f"{OUT}/ledger.parquet")
        s3.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/report.html")
        assert main(["status", OUT, "--report"]) == 0
        assert "finished, started 20" in capsys.readouterr().out
        assert b"data:image/jpeg" in content(s3, f"{PREFIX}/report.html")
        for wrong in ("s3://bucket/absent", "s3://absent/out", "s3://key:s3cr3t@bucket/derivatives/out"):
            assert main(["status", wrong]) == 2
    shown = capsys.readouterr()
    assert "s3cr3t" not in caplog.text + shown.out + shown.err
    everything = download(s3, PREFIX, tmp_path / "fetched")
    names = [path.name for path in everything.rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()]
    assert names == []
    table = pq.read_table(everything / "ledger.parquet").to_pylist()
    assert "s3cr3t" not in repr(table)


def test_googles_store_gets_the_same(
    gcs: GcsServer, bids: Path, tiny_bundle: Path, tiny_config: Config, pool: dict[str, Any], tmp_path: Path
) -> None:
    gcs.upload(bids, "bids")
    job = Job("gs://bucket/bids", "gs://bucket/out", str(tiny_bundle), tiny_config)
    image = "sub-02/anat/sub-02_desc-harmonized_T1w.nii.gz"
    assert harmonize(job) == {"done": 2, "failed": 1}
    first = gcs.get(f"out/{image}")
    assert nib.Nifti1Image.from_bytes(gzip.decompress(first)).get_fdata().any()
    (tmp_path / "ledger.parquet").write_bytes(gcs.get("out/ledger.parquet"))
    rows = {row["image_id"]: row for row in read_ledger(tmp_path / "ledger.parquet")}
    assert rows["sub-02_T1w"]["source"] == "gs://bucket/bids/sub-02/anat/sub-02_T1w.nii.gz"
    assert {"report.html", "dataset_description.json", image, image.replace(".nii.gz", ".json")} <= gcs.keys("out")
    gcs.remove(f"out/{image}")
    assert harmonize(job) == {"done": 1, "failed": 1, "skipped": 1}
    assert gcs.get(f"out/{image}") == first
    assert not [key for key in gcs.keys("out") if key.startswith((".ledger/", ".locks/"))]
    with output_folder(job.out) as output:
        assert run_status(output.folder, locked=output.is_locked()).counts == {"done": 1, "failed": 1, "skipped": 1}
    assert [key for key in gcs.keys("") if SECRET.encode() in gcs.get(key)] == []


def test_a_file_uri_is_a_folder(bids: Path, job: Job, pool: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    from mmh_ray.config import to_dict

    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump(to_dict(job.config)))
    out = (tmp_path / "out").as_uri()
    command = ["harmonize", bids.as_uri(), out, "--model", job.model, "--config", str(settings)]
    assert main([*command, "--participant-label", "01"]) == 0
    assert main(["status", out]) == 0
    assert len(read_ledger(tmp_path / "out/ledger.parquet")) == 1
