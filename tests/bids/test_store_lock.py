"""Only one run at a time can write to a folder of an object store. Uses a real S3 server (moto) on the loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mmh_ray.bids import store_lock
from mmh_ray.bids.store_lock import LOCKS, StoreLock, is_store_locked
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.object_store import Store, StoredFile
from tests.s3_files import BUCKET, keys

pytestmark = pytest.mark.slow

HOLDER = """
import sys, time
from mmh_ray.bids.store_lock import StoreLock
from mmh_ray.object_store import Store
lock = StoreLock(Store(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a refusal fast."""
    monkeypatch.setattr(store_lock, "LOCKING_S", 0.3)


@pytest.fixture
def store(s3: Any) -> Store:
    """A folder without a run."""
    return Store("s3://bucket/out")


def put_lock(s3: Any, **other: Any) -> None:
    """The heartbeat of a run on another machine."""
    content = {"host": "elsewhere", "machine": "elsewhere", "process": 1, "started": "2026-01-01"} | other
    s3.put_object(Bucket=BUCKET, Key=f"out/{LOCKS}/other.json", Body=json.dumps(content))


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make the objects of this run look younger than all others; the server's clock cannot be changed."""
    files_of = Store.files

    def files(self: Store, name: str = "") -> list[StoredFile]:
        added = timedelta(seconds=seconds)
        found = files_of(self, name)
        return [file if "other" in file.name else file._replace(written=file.written + added) for file in found]

    monkeypatch.setattr(Store, "files", files)


def test_a_second_run_is_refused_until_the_first_ends(store: Store) -> None:
    lock = StoreLock(store)
    assert is_store_locked(store)
    with pytest.raises(
        ConfigError, match=r"s3://bucket/out: another run is writing there, on .*, process \d+"
    ) as caught:
        StoreLock(store)
    assert "expected one run a folder" in str(caught.value)
    lock.check()
    lock.release()
    assert not is_store_locked(store)
    StoreLock(store).release()


def test_of_many_that_start_at_once_never_two_hold_it(store: Store) -> None:
    held = 0
    most = 0
    counting = threading.Lock()

    def run() -> None:
        nonlocal held, most
        try:
            lock = StoreLock(store)
        except ConfigError:
            return
        with counting:
            held += 1
            most = max(most, held)
        time.sleep(0.05)
        with counting:
            held -= 1
        lock.release()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 1
    StoreLock(store).release()  # whatever became of them, the next is let in


def test_a_run_that_was_killed_on_this_machine_blocks_no_other(store: Store) -> None:
    command = [sys.executable, "-c", HOLDER, store.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_store_locked(store)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert not is_store_locked(store)
    StoreLock(store).release()


def test_a_run_of_another_machine_counts_as_dead_after_a_time_by_the_stores_clock(
    s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_lock(s3)
    with pytest.raises(ConfigError, match="on elsewhere, process 1, since 2026-01-01"):
        StoreLock(store)
    later(monkeypatch, store_lock.DEAD_S + 5)
    StoreLock(store).release()
    assert keys(s3, f"out/{LOCKS}") == set()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b'{"machine": 3, "process": "x"}'])
def test_a_damaged_heartbeat_counts_all_the_same(s3: Any, store: Store, content: bytes) -> None:
    s3.put_object(Bucket=BUCKET, Key=f"out/{LOCKS}/other.json", Body=content)
    with pytest.raises(ConfigError, match="another run"):
        StoreLock(store)


def test_a_run_that_lost_the_folder_stops_writing(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A released lock stays released, although a heartbeat that was under way may still arrive."""
    monkeypatch.setattr(store_lock, "BEAT_S", 0.3)
    lock = StoreLock(store)
    (name,) = keys(s3, f"out/{LOCKS}")
    for _ in range(10):
        s3.delete_object(Bucket=BUCKET, Key=f"out/{LOCKS}/{name}")
        time.sleep(0.5)
    with pytest.raises(DataError, match="another run has taken over"):
        lock.check()
    lock.release()


def test_a_run_without_a_heartbeat_for_too_long_stops_writing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as after its machine was suspended: no other run took over, but one could have."""
    monkeypatch.setattr(store_lock, "BEAT_S", 3.0)
    monkeypatch.setattr(store_lock, "DEAD_S", store_lock.MARGIN_S + 1)
    lock = StoreLock(store)
    time.sleep(5)
    with pytest.raises(DataError, match=r"no heartbeat of this run for \d+ s, in which another may have taken over"):
        lock.check()
    lock.release()


def test_heartbeats_continue(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_lock, "BEAT_S", 0.2)
    lock = StoreLock(store)
    started = datetime.now(UTC)
    time.sleep(2.5)
    (file,) = store.files(LOCKS)
    assert file.written > started
    lock.check()
    lock.release()


def test_a_folder_that_cannot_be_written_to_is_refused_as_such(s3: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"s3://absent/out/.*NO_SUCH_BUCKET.*expected a folder that can be written to"
    ):
        StoreLock(Store("s3://absent/out"))
