"""Differences of Google Cloud Storage from S3. Uses a real server (gcp-storage-emulator) on the loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mmh_ray import object_store
from mmh_ray.bids import store_lock
from mmh_ray.bids.manifest import find_images
from mmh_ray.bids.store_lock import LOCKS, StoreLock, is_store_locked
from mmh_ray.distributed.run_storage import open_storage
from mmh_ray.errors import ConfigError
from mmh_ray.object_store import Store
from mmh_ray.shards import write_index
from mmh_ray.staging import staged
from tests.gcs_server import SECRET, GcsServer

pytestmark = pytest.mark.slow

MIB = 2**20
UPLOADER = """
import sys
from pathlib import Path
from mmh_ray.object_store import Store
print("ready", flush=True)
Store(sys.argv[1]).put(Path(sys.argv[2]), sys.argv[3])
"""


def test_names_sizes_times_and_bytes_come_as_they_are(gcs: GcsServer, tmp_path: Path) -> None:
    """A key may contain what a URI would decode, and compressed bytes stay compressed."""
    name = "sub-01/anat/sub-01_acq-%20 ä_T1w.nii.gz"
    path = tmp_path / "scan"
    path.write_bytes(os.urandom(9 * MIB))  # more than Google's client sends or the sockets hold at a time
    store = Store("gs://bucket/bids")
    store.put(path, name)
    assert gcs.get(f"bids/{name}") == path.read_bytes()
    (file,) = store.files()
    assert (file.name, file.size) == (name, 9 * MIB)
    assert abs(file.written.timestamp() - time.time()) < 60
    with staged(store.uri_of(name)) as (copy,):
        assert Path(copy).read_bytes() == path.read_bytes()
    store.remove(name)
    store.remove(name)
    assert store.files() == []


def test_an_upload_that_is_killed_leaves_what_was_there(gcs: GcsServer, tmp_path: Path) -> None:
    gcs.put("out/image", b"earlier")
    large = tmp_path / "large"
    with open(large, "wb") as stream:
        stream.truncate(64 * MIB)
    command = [sys.executable, "-c", UPLOADER, "gs://bucket/out", str(large), "image"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        uploader = psutil.Process(process.pid)
        before = uploader.io_counters().read_chars
        while uploader.io_counters().read_chars < before + 24 * MIB:  # two parts of 8 MiB are with the server
            time.sleep(0.01)
        process.kill()
    assert process.returncode < 0
    assert gcs.keys("out") == {"image"}
    assert gcs.get("out/image") == b"earlier"


def test_the_second_of_two_runs_is_refused(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_lock, "LOCKING_S", 0.3)
    monkeypatch.setattr(store_lock, "BEAT_S", 0.2)
    store = Store("gs://bucket/out")
    lock = StoreLock(store)
    time.sleep(1)  # heartbeats
    lock.check()
    assert is_store_locked(store)
    with pytest.raises(ConfigError, match="gs://bucket/out: another run is writing there"):
        StoreLock(store)
    lock.release()
    assert gcs.keys(f"out/{LOCKS}") == set()


def test_a_wrong_secret_is_refused_and_not_shown(
    gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials.json"
    told = Path(gcs.environment["GOOGLE_APPLICATION_CREDENTIALS"]).read_text()
    credentials.write_text(told.replace(SECRET, "wr0ng"))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials))
    with pytest.raises(ConfigError, match=r"gs://bucket/bids: .*GOOGLE_APPLICATION_CREDENTIALS") as caught:
        find_images("gs://bucket/bids")
    assert "wr0ng" not in str(caught.value)


def test_without_credentials_it_ends_in_time(gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's client by itself would retry for 15 minutes."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("HOME", str(tmp_path))  # nor those of a person who has signed in
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:9")  # nor those of Google's machines
    monkeypatch.setattr(object_store, "GOOGLE_RETRY_S", 1)
    with pytest.raises(ConfigError, match=r"gs://bucket/bids: .*GOOGLE_APPLICATION_CREDENTIALS"):
        find_images("gs://bucket/bids")


def test_no_bucket_is_told_from_no_folder(gcs: GcsServer) -> None:
    with pytest.raises(ConfigError, match="gs://absent/bids: no bucket absent"):
        find_images("gs://absent/bids")
    with pytest.raises(ConfigError, match="gs://bucket/absent: no such folder, or an empty one"):
        find_images("gs://bucket/absent")


def test_a_mistyped_bucket_is_not_made(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyarrow would do on this store if the environment names a project."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    for make in (lambda: write_index("gs://typo/prepared", []), lambda: open_storage("gs://typo/runs")):
        with pytest.raises(ConfigError, match="no bucket typo"):
            make()
    with pytest.raises(ConfigError, match="no bucket typo"):
        Store("gs://typo/out").check_bucket()
    write_index("gs://bucket/prepared", [])
    assert "index.parquet" in gcs.keys("prepared")
