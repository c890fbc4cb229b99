"""Allows only one run at a time to write to a folder of an object store, which has no locks, by heartbeats.

Each run writes its own object, and then lists the objects of all runs. A listing shows everything written before (true
for S3, GCS and MinIO). So of two runs that start at once, at least one sees the other and gives up.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from mmh_ray.errors import ConfigError, DataError, MMHError
from mmh_ray.object_store import Store

log = logging.getLogger(__name__)

LOCKS = ".locks"
"""Folder with one object per active run."""
BEAT_S = 20.0
"""Seconds between heartbeats: a run writes its object again."""
DEAD_S = 180.0
"""Seconds without a heartbeat after which a run counts as dead, by the store's own time stamps."""
MARGIN_S = 5.0
"""Seconds before that at which a run itself gives up the folder."""
LOCKING_S = 4.0
"""Seconds for which a run retries, because two runs that start at once may both have given up."""


class StoreLock:
    """The right to write to a folder, held until :meth:`release` by a thread that sends heartbeats.

    Raises
    ------
    ConfigError
        If another run is writing there, or the folder cannot be written to.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._name = f"{LOCKS}/{uuid.uuid4().hex}.json"
        self._content = json.dumps(_this_run()).encode()
        self._problem: str | None = None
        self._released = threading.Event()
        self._acquire()
        self._thread = threading.Thread(target=self._stay_alive, name="mmh-store-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise DataError if this run has lost the lock, because its heartbeat failed for so long."""
        if self._problem is not None:
            expected = f"a heartbeat at least every {DEAD_S:g} s"
            raise DataError(f"{self._store.uri}: {self._problem}", expected, "Run again once no other run is writing.")

    def release(self) -> None:
        """Release the lock."""
        self._released.set()
        self._thread.join()
        try:
            self._store.remove(self._name)
        except MMHError as error:
            log.warning("lock not released; the next run must wait %g s: %s", DEAD_S, error)

    def _acquire(self) -> None:
        deadline = time.monotonic() + LOCKING_S
        while True:
            try:
                self._store.write(self._content, self._name)
                other = _other_run(self._store, self._name)
            except DataError as error:
                raise ConfigError(error.received, "a folder that can be written to", error.remedy) from error
            if other is None:
                self._written = _written(self._store, self._name)
                return
            self._store.remove(self._name)
            if time.monotonic() > deadline:
                received = f"{self._store.uri}: another run is writing there, {other}"
                remedy = f"Wait for it or stop it; the lock of a killed run expires after {DEAD_S:g} s."
                raise ConfigError(received, "one run a folder", remedy)
            time.sleep(random.uniform(0.1, 1.0))  # random, so that two runs do not stay in step

    def _stay_alive(self) -> None:
        last_beat = time.monotonic()
        while not self._released.wait(BEAT_S):
            try:
                if not self._store.has(self._name):
                    self._problem = "another run has taken over, because this run sent no heartbeat"
                    return
                self._store.write(self._content, self._name)
                written = _written(self._store, self._name)
                gap_s = (written - self._written).total_seconds()
                if gap_s > DEAD_S - MARGIN_S:  # such as after a suspend: another run may have started meanwhile
                    self._problem = f"no heartbeat of this run for {gap_s:g} s, in which another may have taken over"
                    return
                self._written = written
                last_beat = time.monotonic()
            except MMHError as error:
                log.warning("the heartbeat of this run failed: %s", error)
                if time.monotonic() - last_beat > DEAD_S - 2 * BEAT_S:  # before others may consider this run dead
                    self._problem = "no heartbeat of this run could be written"
                    return


def is_store_locked(store: Store) -> bool:
    """Whether a run is writing to the folder now; assumes that the clocks of this machine and the store agree."""
    now = datetime.now(UTC)
    for file in store.files(LOCKS):
        age_s = (now - file.written).total_seconds()
        if age_s < DEAD_S and not _has_died_here(store.read_object(file.name)):
            return True
    return False


def _other_run(store: Store, own_name: str) -> str | None:
    """Description of another active run; None if there is none. Objects of dead runs are removed."""
    written = _written(store, own_name)
    for file in store.files(LOCKS):
        if file.name == own_name:
            continue
        content = store.read_object(file.name)
        age_s = (written - file.written).total_seconds()
        if age_s < DEAD_S and not _has_died_here(content):
            return f"on {content.get('host')}, process {content.get('process')}, since {content.get('started')}"
        log.warning("%s: left by a run that was killed, %s", store.uri_of(file.name), content)
        store.remove(file.name)
    return None


def _written(store: Store, name: str) -> datetime:
    """Time at which a run's object was last written, by the store's clock.

    Raises
    ------
    DataError
        If the store does not list it.
    """
    for file in store.files(LOCKS):
        if file.name == name:
            return file.written
    raise DataError(
        f"{store.uri_of(name)}: not listed", "a store that lists what was just written", "Use such a store."
    )


def _this_run() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "machine": _machine(),
        "process": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine() -> str:
    """Identifies this machine and its process namespace (container), in which process ids are unique."""
    parts = [platform.node()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        pass
    return " ".join(parts)


def _has_died_here(content: dict[str, Any]) -> bool:
    """Whether the run was a process of this machine that has ended, so that its lock need not expire first."""
    if content.get("machine") != _machine():
        return False
    try:
        started = psutil.Process(content["process"]).create_time()
        return abs(started - content["process_started"]) > 1.0  # then another process has its id now
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False
