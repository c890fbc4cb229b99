"""Logs each run over an archive as an MLflow run: status counts, distributions of figures, ledger and report."""

from __future__ import annotations

import dataclasses
import logging
import re
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmh_ray.bids.ledger import LEDGER, write_ledger
from mmh_ray.bids.ledger_rows import moment_of
from mmh_ray.bids.rows import LEDGER_STATUSES, LedgerRow
from mmh_ray.bids.status import RECORD, RunRecord
from mmh_ray.config import Config
from mmh_ray.object_store import loggable_uri
from mmh_ray.provenance import hash_of
from mmh_ray.quality.cohort import ImageRecord, headline
from mmh_ray.quality.measures import measures
from mmh_ray.quality.run_report import image_record
from mmh_ray.tracking.inputs import RunInput, log_input
from mmh_ray.tracking.outage import is_unreachable
from mmh_ray.tracking.runs import MetricRow, finish, log_file, log_metrics, start_run
from mmh_ray.tracking.store import choose_uri, configure, is_configured, mlflow_client, without_credentials

log = logging.getLogger(__name__)

EXPERIMENT_ENDING = "-harmonize"
"""Added to ``tracking.experiment``: runs over archives have a separate experiment."""
LAST_SECONDS = 60.0
"""How long the end of a run waits for MLflow at most."""
RETRY_SECONDS = 60.0
"""Seconds between two attempts to start the run at a server that does not answer."""
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


class Outcome(NamedTuple):
    """Outcome of a run over an archive.

    Attributes
    ----------
    record:
        Record of the finished run.
    rows:
        All rows of the folder's ledger.
    out:
        Folder of the derivatives.
    """

    record: RunRecord
    rows: list[LedgerRow]
    out: str


class ArchiveRun:
    """Logs one run over an archive to MLflow in a separate thread, so that a slow server delays no image.

    Nothing here raises. If logging fails there is a warning; the folder of derivatives has all the data.

    Parameters
    ----------
    record:
        Record of the run that starts.
    facts:
        Tags ``mmh.KEY`` of the MLflow run.
    on_start:
        Called in the thread with the id of the MLflow run.
    """

    def __init__(
        self, config: Config, record: RunRecord, facts: Mapping[str, str], on_start: Callable[[str], None]
    ) -> None:
        self._config = config
        self._record = record
        self._facts = facts
        self._on_start = on_start
        self._outcome: Outcome | None = None
        self._is_over = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="archive-run", daemon=True)

    @classmethod
    def start(
        cls, config: Config, record: RunRecord, facts: Mapping[str, str], on_start: Callable[[str], None]
    ) -> ArchiveRun | None:
        """Start the run; None if no tracking store is configured (then MLflow is not imported)."""
        if not is_configured(config.tracking):
            return None
        run = cls(config, record, facts, on_start)
        run._thread.start()
        return run

    def finish(self, outcome: Outcome) -> None:
        """Log the outcome and end the run; returns after :data:`LAST_SECONDS` at most."""
        self._outcome = outcome
        self._is_over.set()
        self._thread.join(LAST_SECONDS)
        problem: object = self._failure
        if self._thread.is_alive():
            problem = f"no answer for {LAST_SECONDS:.0f} s"
        if problem is not None:
            uri = without_credentials(choose_uri(self._config.tracking))
            reason = without_credentials(problem)
            log.warning("MLflow at %s lacks this run, or part of it: %s. %s has all of it.", uri, reason, outcome.out)

    def _work(self) -> None:
        try:
            configure(self._config.tracking)
            run_id = self._start_when_reachable()
            self._on_start(run_id)
            self._is_over.wait()
            assert self._outcome is not None
            _log_outcome(run_id, self._outcome, self._config)
        except Exception as error:  # from MLflow, its store or the network; it must not end the run over the archive
            log.debug("raised here:", exc_info=True)
            self._failure = error

    def _start_when_reachable(self) -> str:
        """Start the MLflow run; if the server does not answer, retry until the run over the archive has ended."""
        from mlflow.exceptions import MlflowException

        tracking = self._config.tracking
        experiment = f"{tracking.experiment}{EXPERIMENT_ENDING}"
        config = dataclasses.replace(self._config, tracking=dataclasses.replace(tracking, experiment=experiment))
        source = loggable_uri(self._record.source)
        facts = {**self._facts, "source": source, "model": self._record.model, "model_hash": self._record.model_hash}
        has_warned = False
        while True:
            is_last = self._is_over.is_set()
            try:
                return start_run(config, Path(source).name, None, facts)
            except MlflowException as error:
                if is_last or not is_unreachable(error):
                    raise
                if not has_warned:
                    log.warning("MLflow does not answer; the images do not wait for it: %s", without_credentials(error))
                has_warned = True
            self._is_over.wait(RETRY_SECONDS)


def _log_outcome(run_id: str, outcome: Outcome, config: Config) -> None:
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    record = outcome.record
    out = Path(outcome.out)
    rows = rows_since(record.started, outcome.rows)
    images = [image_record(out, row) for row in rows]
    content = sorted([row["image_id"], row["input_sha256"]] for row in rows)
    log_input(run_id, RunInput("harmonization", hash_of(content), record.source))
    values = archive_metrics(images)
    if record.finished_at is not None:
        values["seconds"] = (record.finished_at - record.started_at).total_seconds()
    log_metrics(run_id, [MetricRow.of_now(0, values)])
    mlflow_client().set_tag(run_id, MLFLOW_RUN_NOTE, headline(images, measures(config.quality)))
    with tempfile.TemporaryDirectory() as scratch:
        write_ledger(Path(scratch, LEDGER), outcome.rows)  # the folder's ledger file is written after this
        dataclasses.replace(record, source=loggable_uri(record.source)).write(scratch)
        log_file(run_id, Path(scratch, LEDGER))
        log_file(run_id, Path(scratch, RECORD), str(Path(RECORD).parent))
    report = out / "report.html"
    if report.is_file():
        log_file(run_id, report)
    finish(run_id, "FINISHED" if record.failure is None else "FAILED")


def rows_since(started: str, rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """The rows of one run: those finished since its start, which is given as ISO 8601."""
    start = moment_of(started)
    assert start is not None
    recent = []
    for row in rows:
        finished = moment_of(row["finished"])
        if finished is not None and finished >= start:
            recent.append(row)
    return recent


def archive_metrics(images: Sequence[ImageRecord]) -> dict[str, float]:
    """Metrics of a run over an archive.

    - ``images.STATUS`` and ``images.flagged``: numbers of images;
    - ``flags.KIND``: number of images with a flag of that kind;
    - ``qc.SEQUENCE.FIGURE.QUANTILE`` and ``image_seconds.SEQUENCE.QUANTILE``: see :data:`QUANTILES`.
    """
    by_status = Counter(image.status for image in images)
    values = {f"images.{status}": float(by_status[status]) for status in LEDGER_STATUSES}
    values["images.flagged"] = float(sum(bool(image.flags) for image in images))
    flags: Counter[str] = Counter()
    distributions: defaultdict[str, list[float]] = defaultdict(list)
    for image in images:
        flags.update({_kind(flag) for flag in image.flags})
        for figure, value in image.qc.items():
            distributions[f"qc.{image.sequence}.{figure}"].append(value)
        if image.seconds is not None:
            distributions[f"image_seconds.{image.sequence}"].append(image.seconds)
    values |= {f"flags.{kind}": float(count) for kind, count in sorted(flags.items())}
    for name, numbers in sorted(distributions.items()):
        quantiles = np.quantile(numbers, list(QUANTILES.values()))
        for label, quantile in zip(QUANTILES, quantiles, strict=True):
            values[f"{name}.{label}"] = float(quantile)
    return values


def _kind(flag: str) -> str:
    """Kind of a flag, in characters that MLflow allows: `brain, ml: 900 is below 950` becomes `brain ml`."""
    return re.sub(r"[^A-Za-z0-9_ -]+", "", flag.partition(":")[0]).strip()
