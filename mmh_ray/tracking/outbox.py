"""Buffers the metrics of a training in files beside its checkpoints until MLflow has acknowledged them.

Training workers write the files and the driver sends them. They share only the folder, which every node can reach like
the checkpoints. So no process has to outlive another, workers need no connection to MLflow, and metrics that were not
sent, because of an outage or a killed driver, are sent at the next start.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import pyarrow.fs

from mmh_ray.tracking.runs import MetricRow, log_metrics
from mmh_ray.tracking.store import without_credentials

log = logging.getLogger(__name__)

WRITE_SECONDS = 5.0
"""Rows are written when the oldest has waited this long."""
READ_SECONDS = 2.0
"""Seconds between two searches for new files by the driver."""
SEND_SECONDS = 5.0
"""Seconds between two attempts to send."""
LAST_SECONDS = 30.0
"""How long the end of a training waits for each thread that hangs in the storage or in MLflow's retries."""

_ENDING = ".json"


class MetricsOutbox:
    """Rows of metrics in the files of a folder; names are unique, even with several writers.

    Parameters
    ----------
    storage:
        File system of the training run.
    folder:
        Folder in it; created with the first file.
    """

    def __init__(self, storage: pyarrow.fs.FileSystem, folder: str) -> None:
        self.storage = storage
        self.folder = folder
        self._collected: list[MetricRow] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Collect the metrics of a step, and write the collected metrics every few seconds; raises nothing."""
        self._collected.append(MetricRow.of_now(step, values))
        age_ms = self._collected[-1].time_ms - self._collected[0].time_ms
        if age_ms >= WRITE_SECONDS * 1000:
            self.write()

    def write(self) -> None:
        """Write the collected metrics. Call it before a checkpoint, as a resumed training does not repeat its steps.

        If writing fails, the metrics are kept for the next call; nothing is raised.
        """
        if not self._collected:
            return
        name = f"{time.time_ns():020d}-{self._collected[0].step}-{uuid.uuid4().hex[:8]}"
        content = json.dumps([asdict(row) for row in self._collected]).encode()
        unfinished = f"{self.folder}/{name}.part"
        try:
            self.storage.create_dir(self.folder)
            with self.storage.open_output_stream(unfinished) as stream:
                stream.write(content)
            self.storage.move(unfinished, f"{self.folder}/{name}{_ENDING}")
        except OSError as error:
            log.warning("metrics of %d steps are kept, as %s cannot be written: %s", len(self._collected), name, error)
            return
        self._collected = []

    def names(self) -> list[str]:
        """Names of the files that are not sent yet, the oldest first."""
        selector = pyarrow.fs.FileSelector(self.folder, allow_not_found=True)
        return sorted(info.base_name for info in self.storage.get_file_info(selector) if info.extension == _ENDING[1:])

    def read(self, name: str) -> list[MetricRow]:
        """Rows of a file."""
        with self.storage.open_input_stream(f"{self.folder}/{name}") as stream:
            return [MetricRow(**row) for row in json.loads(stream.read())]

    def remove(self, name: str) -> None:
        """Delete a file, if it still exists."""
        with contextlib.suppress(FileNotFoundError):
            self.storage.delete_file(f"{self.folder}/{name}")

    def remove_folder(self) -> None:
        """Delete the folder if no metrics are left in it; it is created again when needed."""
        with contextlib.suppress(OSError):
            if not self.names():
                self.storage.delete_dir(self.folder)


@contextlib.contextmanager
def sending_metrics(
    outbox: MetricsOutbox, run_id: str, on_row: Callable[[MetricRow], None] = lambda row: None
) -> Iterator[None]:
    """Send the metrics in an outbox to MLflow, including those that are added while the block runs.

    An outage of MLflow delays metrics; it neither raises nor delays the block. Metrics that could not be sent by the
    end stay in the outbox, with a warning. The store must be configured (:func:`mmh_ray.tracking.configure`).

    Parameters
    ----------
    on_row:
        Called in a thread with every new row, whether or not it could be sent.
    """
    sender = _Sender(outbox, run_id, on_row)
    sender.start()
    try:
        yield
    except BaseException:
        sender.stop()
        sender.warn_of_unsent()
        raise
    sender.stop()
    # The sender may still sleep in MLflow's retries although the store is back, so this thread sends too.
    # A row that is sent twice becomes one row in MLflow.
    sender.send()
    sender.warn_of_unsent()


def send_left(storage: pyarrow.fs.FileSystem, folder: str) -> None:
    """Send the metrics that earlier trainings left in outboxes below a folder; an outbox is named by its run's id.

    If such a training is still running, some rows may be sent twice; MLflow stores them once.
    """
    for entry in storage.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True)):
        outbox = MetricsOutbox(storage, entry.path)
        if entry.type == pyarrow.fs.FileType.Directory and outbox.names():
            with sending_metrics(outbox, entry.base_name):
                log.info("sending metrics of MLflow run %s that an earlier training left", entry.base_name)
            outbox.remove_folder()


class _Sender:
    """Reads in one thread and sends in another: sending may hang for minutes, while progress must continue."""

    def __init__(self, outbox: MetricsOutbox, run_id: str, on_row: Callable[[MetricRow], None]) -> None:
        self._outbox = outbox
        self._run_id = run_id
        self._on_row = on_row
        self._read: set[str] = set()
        self._unsent: dict[str, list[MetricRow]] = {}
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._reader = threading.Thread(target=self._keep_reading, name="metrics-reader", daemon=True)
        self._sender = threading.Thread(target=self._keep_sending, name="metrics-sender", daemon=True)

    def start(self) -> None:
        """Start both threads."""
        self._reader.start()
        self._sender.start()

    def stop(self) -> None:
        """Stop both threads after a last read and a last attempt to send; a thread that hangs is abandoned."""
        self._stopping.set()
        self._reader.join(LAST_SECONDS)
        self._sender.join(LAST_SECONDS)

    def send(self) -> None:
        """Send all rows that were read, the oldest first; delete each file once MLflow has acknowledged it."""
        try:
            for name, rows in list(self._unsent.items()):
                log_metrics(self._run_id, rows)
                self._outbox.remove(name)
                self._unsent.pop(name, None)
        except Exception as error:  # from MLflow, its store or the network; metrics must not end a training
            if self._failure is None:
                reason = without_credentials(error)
                log.warning("metrics are kept in %s until MLflow accepts them: %s", self._outbox.folder, reason)
            self._failure = error
            return
        if self._failure is not None:
            log.info("MLflow accepts metrics again; the delayed metrics are sent")
        self._failure = None

    def warn_of_unsent(self) -> None:
        """Log a warning if some metrics were not sent."""
        steps = {row.step for rows in list(self._unsent.values()) for row in rows}
        if steps:
            log.warning(
                "metrics of %d steps (%d to %d) are not in MLflow (%s). "
                "They are kept in %s and sent when this training is started again.",
                len(steps),
                min(steps),
                max(steps),
                without_credentials(self._failure or "it has not answered"),
                self._outbox.folder,
            )

    def _keep_reading(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(READ_SECONDS)
            try:
                self._read_new()
            except Exception as error:  # from the storage; the files are read again next time
                log.warning("metrics in %s cannot be read: %s", self._outbox.folder, error)

    def _read_new(self) -> None:
        for name in self._outbox.names():
            if name in self._read:
                continue
            rows = self._outbox.read(name)
            self._read.add(name)
            self._unsent[name] = rows
            for row in rows:
                self._on_row(row)

    def _keep_sending(self) -> None:
        while not self._stopping.wait(SEND_SECONDS):
            self.send()
        self._reader.join(LAST_SECONDS)
        self.send()
