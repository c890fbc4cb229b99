"""Counts images, seconds and waits as Ray metrics for Prometheus; `configs/cluster/grafana.json` draws them.

Ray exports each name with the prefix `ray_`, and a counter also with the suffix `_total`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from mmh_ray.bids.rows import Problem, problem_of

Row = Mapping[str, Any]

IMAGES = "mmh_images"
"""Counter by stage, sequence, status and reason: images that have finished, with any status."""
SECONDS = "mmh_image_seconds"
"""Histogram by stage and sequence: seconds per image, of images with a result."""
WAIT = "mmh_data_wait_seconds"
"""Counter by stage: seconds in which the network had no prepared image (harmonize), or an image was read (prepare)."""
QUEUE = "mmh_queue_length"
"""Gauge by stage: images that no worker has yet."""

BOUNDS_S = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]
"""Upper bounds of the histogram's bars: a second on a coarse grid up to ``harmonize.timeout_s``."""
MOST_REASON = 80
"""Most characters of a reason in a label."""


def reason_label(problem: Problem | None) -> str:
    """A label for the kind of a failure: what was expected, without numbers, because each label is a time series.

    >>> reason_label(Problem("/data/x.nii.gz: 4 dimensions (3, 3, 3, 2)", "3 dimensions", "Split the series."))
    '# dimensions'
    """
    if problem is None:
        return ""
    return re.sub(r"\d+(\.\d+)?", "#", problem.expected or "other")[:MOST_REASON]


def count_image(stage: str, row: Row, problem: Problem | None = None) -> None:
    """Count a finished image.

    Parameters
    ----------
    stage:
        ``harmonize`` or ``prepare``.
    row:
        A row with ``status``, and with ``sequence`` and ``seconds`` if known.
    problem:
        Why the image has no result; by default taken from the row.
    """
    sequence = str(row.get("sequence") or "")
    reason = reason_label(problem or problem_of(row))
    tags = {"stage": stage, "sequence": sequence}
    outcome = {"status": str(row["status"]), "reason": reason}
    _images().inc(1, tags | outcome)
    seconds = row.get("seconds")
    if seconds and row["status"] in ("done", "ok"):
        _seconds().observe(seconds, tags)


def add_wait(stage: str, seconds: float) -> None:
    """Add to the seconds that the work waited for data."""
    if seconds > 0:  # a counter refuses zero
        _wait().inc(seconds, {"stage": stage})


def set_queue(stage: str, images: int) -> None:
    """Set the number of waiting images."""
    _queue().set(images, {"stage": stage})


class MeasuredHarmonizeWorker:
    """The actor of the batch job: adds metrics to a worker that knows neither Ray nor metrics.

    Parameters
    ----------
    worker_class, arguments:
        Class of the worker, with a method ``harmonize(row)`` and ``model_idle_s``, and its arguments.
    """

    def __init__(self, worker_class: type[Any], *arguments: Any) -> None:
        self._worker = worker_class(*arguments)
        self._counted_idle_s = 0.0
        self._idle_lock = threading.Lock()

    def harmonize(self, row: dict[str, Any]) -> Sequence[Row]:
        """Harmonize one image; returns its ledger rows."""
        ledger_rows = self._worker.harmonize(row)
        for ledger_row in ledger_rows:
            count_image("harmonize", ledger_row)
        with self._idle_lock:
            idle_s = self._worker.model_idle_s
            add_wait("harmonize", idle_s - self._counted_idle_s)
            self._counted_idle_s = idle_s
        return ledger_rows


# Each metric is made once per process, and only when it is first used, because Ray must be running then.


@cache
def _images() -> Counter:
    return Counter(IMAGES, "images that have finished", tag_keys=("stage", "sequence", "status", "reason"))


@cache
def _seconds() -> Histogram:
    return Histogram(SECONDS, "seconds that an image took", boundaries=BOUNDS_S, tag_keys=("stage", "sequence"))


@cache
def _wait() -> Counter:
    return Counter(WAIT, "seconds that the work waited for data", tag_keys=("stage",))


@cache
def _queue() -> Gauge:
    return Gauge(QUEUE, "images that no worker has yet", tag_keys=("stage",))
