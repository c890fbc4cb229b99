"""The manifest on Ray: every file is opened, none is lost, none ends the job."""

import contextlib
import gzip
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config
from mmh_ray.distributed.manifest import MOST_BYTES_UNSEEN, build_manifest, probe
from mmh_ray.errors import ConfigError
from mmh_ray.provenance import sha256_file

AFFINE = np.array([[0, 0, 3.0, 0], [-1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])  # the axes point to P, S and R
BAD = {
    "02": "unreadable",
    "03": "NaN",
    "04": "4-D",
    "05": "unreadable",
    "06": "unreadable",
    "07": "singular affine",
    "08": "constant",
    "10": "no site",
}


def place(root: Path, subject: str) -> Path:
    path = root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save(root: Path, subject: str, data: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    path = place(root, subject)
    voxels = np.arange(24, dtype=np.float32).reshape(2, 3, 4) if data is None else data
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)
    return path


def singular(path: Path) -> None:
    """Write the first row of the sform as zeros, which nibabel itself would not save."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")  # qform_code, sform_code
    content[280:296] = bytes(16)
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two good images, a wrong name, and one of each kind of bad file."""
    root = tmp_path / "bids"
    save(root, "01")
    random = np.random.default_rng(0).normal(size=(24, 24, 24))
    path = save(root, "02", random)
    path.write_bytes(path.read_bytes()[:9000])
    save(root, "03", np.full((2, 2, 2), np.nan))
    save(root, "04", np.ones((3, 3, 3, 2)))
    place(root, "05").write_bytes(b"")
    place(root, "06").write_text("not an image")
    singular(save(root, "07"))
    save(root, "08", np.ones((2, 2, 2)))
    save(root, "09")
    save(root, "10")
    path.with_name("sub-02_T1w (old).nii.gz").write_bytes(b"x")
    lines = ["participant_id\tsite", *(f"sub-{number:02d}\t{'AB'[number % 2]}" for number in range(1, 10))]
    (root / "participants.tsv").write_text("\n".join(lines))
    return root


@pytest.mark.ray
def test_every_image_keeps_a_row_in_order(archive, tmp_path, ray_cluster, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "manifest.parquet"
    table = build_manifest(str(archive), str(out), Config())
    assert read_manifest(out).equals(table)
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert list(rows) == sorted(rows)
    assert len(rows) == 11
    assert {key for key, row in rows.items() if row["status"] == "ok"} == {"sub-01_T1w", "sub-09_T1w"}
    for subject, reason in BAD.items():
        assert reason in rows[f"sub-{subject}_T1w"]["reason"], subject
        assert rows[f"sub-{subject}_T1w"]["split"] is None
    good = rows["sub-01_T1w"]
    assert (good["shape"], good["spacing_mm"], good["orientation"]) == ([2, 3, 4], [1.0, 2.0, 3.0], "PSR")
    assert (good["bytes"], good["sha256"]) == (Path(good["uri"]).stat().st_size, sha256_file(good["uri"]))
    assert good["split"]
    assert rows["sub-04_T1w"]["shape"] == [3, 3, 3, 2]
    assert rows["sub-06_T1w"]["sha256"]
    assert any("Reading: 9/9 images" in message for message in caplog.messages)


@contextlib.contextmanager
def deadly(path: Path) -> Iterator[set[int]]:
    """While the block runs, every worker that has a file open is killed, as by a system that is out of memory.

    Gives the numbers of these processes.
    """
    killed: set[int] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            for process in psutil.Process().children(recursive=True):  # Ray's, which this process has started
                with contextlib.suppress(psutil.Error):
                    if any(file.path == str(path) for file in process.open_files()):
                        process.kill()
                        killed.add(process.pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


@pytest.mark.ray
def test_a_file_that_kills_its_worker_costs_that_row_alone(tmp_path, ray_cluster):
    root = tmp_path / "bids"
    for subject in ("01", "03"):
        save(root, subject)
    worst = root / "sub-02/anat/sub-02_T1w.nii"
    worst.parent.mkdir(parents=True)
    worst.touch()
    os.truncate(worst, MOST_BYTES_UNSEEN)  # hashing it takes a second or more
    (root / "participants.tsv").write_text("participant_id\tsite\nsub-01\tA\nsub-02\tA\nsub-03\tB\n")
    with deadly(worst) as killed:
        rows = {row["image_id"]: row for row in build_manifest(str(root), str(tmp_path / "m"), Config()).to_pylist()}
    assert killed
    assert {key for key, row in rows.items() if row["status"] == "ok"} == {"sub-01_T1w", "sub-03_T1w"}
    row = rows["sub-02_T1w"]
    assert (row["status"], row["sha256"], row["shape"]) == ("unusable", None, None)
    assert row["reason"].startswith("the worker died on this file (")
    assert "expected a worker that reads it. Look at the file" in row["reason"]


@pytest.mark.fast
def test_an_unusable_archive_or_target_is_refused_before_ray_starts(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        build_manifest(str(tmp_path / "absent"), str(tmp_path / "m.parquet"), Config())
    with pytest.raises(ConfigError, match="a file to write"):
        build_manifest(str(tmp_path), str(tmp_path), Config())


@pytest.mark.fast
def test_probe_returns_what_json_can_hold(tmp_path):
    facts = probe(str(save(tmp_path, "01")))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["status"], facts["reason"], facts["orientation"]) == ("ok", None, "PSR")


@pytest.mark.fast
def test_probe_never_raises(tmp_path, monkeypatch):
    gone = probe(str(tmp_path / "gone.nii"))
    assert gone["status"] == "unusable"
    assert "No such file or directory; expected the file that was found there before" in gone["reason"]

    def strange(path):
        raise RuntimeError("a surprise")

    monkeypatch.setattr("mmh_ray.distributed.manifest.read_volume", strange)
    facts = probe(str(save(tmp_path, "01")))
    assert (facts["status"], facts["shape"]) == ("unusable", [2, 3, 4])
    assert "RuntimeError: a surprise" in facts["reason"]


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["pipe", "zeros", "folder"])
def test_probe_does_not_wait_for_special_files(tmp_path, kind):
    path = tmp_path / "sub-01_T1w.nii.gz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    facts = probe(str(path))
    assert facts["status"] == "unusable"
    assert "not a regular file; expected a regular file" in facts["reason"]


@pytest.mark.fast
def test_probe_reads_a_huge_file_before_it_hashes_it(tmp_path):
    """64 GiB of nothing behind a small image: hashed, they take a minute."""
    path = tmp_path / "sub-01_T1w.nii"
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), AFFINE), path)
    os.truncate(path, 2**36)
    start = time.perf_counter()
    facts = probe(str(path))
    assert time.perf_counter() - start < 5
    assert (facts["status"], facts["shape"], facts["bytes"]) == ("unusable", [2, 3, 4], 2**36)
    assert "bytes after the voxels" in facts["reason"]
    assert "sha256" not in facts


@pytest.mark.fast
def test_probe_keeps_what_a_bad_header_says(tmp_path):
    path = save(tmp_path, "01")
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[108:112] = bytes(4)  # vox_offset
    path.write_bytes(gzip.compress(bytes(content)))
    facts = probe(str(path))
    assert (facts["status"], facts["shape"], facts["orientation"]) == ("unusable", [2, 3, 4], "PSR")
    assert "vox_offset 0" in facts["reason"]
