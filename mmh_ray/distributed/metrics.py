"""What Prometheus sees of the work on images, through Ray's own metrics; `configs/cluster/grafana.json` draws them.

Ray exports each name with `ray_` before it, and that of a counter with `_total` behind it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from ray.util.metrics import Counter, Gauge, Histogram

from mmh_ray.bids.rows import Problem, problem_of

Row = Mapping[str, Any]

IMAGES = "mmh_images"
"""Counter by stage, sequence, status and reason: images that are finished, whatever came of them."""
SECONDS = "mmh_image_seconds"
"""Histogram by stage and sequence: seconds that an image took, of those that were done."""
WAIT = "mmh_data_wait_seconds"
"""Counter by stage: seconds that the model had no prepared image (harmonize), or that an image was being read (prepare)."""
QUEUE = "mmh_queue_length"
"""Gauge by stage: images that nobody works on yet."""

BOUNDS_S = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]
"""Upper bounds of the histogram's bars: a second on a coarse grid up to ``harmonize.timeout_s``."""
MOST_REASON = 80
"""Characters of a reason that become a label."""


def reason_label(problem: Problem | None) -> str:
    """The kind of a failure, as one of few texts: what was expected, without numbers; a label per file would be too many.

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
        With ``status``, and ``sequence`` and ``seconds`` where it has them.
    problem:
        Why the image has no result; by default as the row tells.
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
    if seconds > 0:  # a counter takes no zero
        _wait().inc(seconds, {"stage": stage})


def set_queue(stage: str, images: int) -> None:
    """Tell how many images wait."""
    _queue().set(images, {"stage": stage})


class _Worker(Protocol):
    """What :class:`MeasuredHarmonizeWorker` needs of a worker."""

    model_idle_s: float

    def harmonize(self, row: dict[str, Any]) -> Sequence[Row]: ...


class MeasuredHarmonizeWorker:
    """The actor of the batch job: a worker, which knows neither Ray nor metrics, and what is told of it.

    Parameters
    ----------
    kind, arguments:
        Class of the worker, with a method ``harmonize(row)`` and ``model_idle_s``, and what it is made of.
    """

    def __init__(self, kind: type[_Worker], *arguments: Any) -> None:
        self._worker = kind(*arguments)
        self._told_s = 0.0
        self._telling = threading.Lock()

    def harmonize(self, row: dict[str, Any]) -> Sequence[Row]:
        """The ledger rows of one image."""
        ledger_rows = self._worker.harmonize(row)
        for ledger_row in ledger_rows:
            count_image("harmonize", ledger_row)
        with self._telling:
            idle_s = self._worker.model_idle_s
            add_wait("harmonize", idle_s - self._told_s)
            self._told_s = idle_s
        return ledger_rows


# One of each name in a process, made when it is first used: in a worker process that is when Ray runs.


@cache
def _images() -> Counter:
    return Counter(IMAGES, "images that are finished", tag_keys=("stage", "sequence", "status", "reason"))


@cache
def _seconds() -> Histogram:
    return Histogram(SECONDS, "seconds that an image took", boundaries=BOUNDS_S, tag_keys=("stage", "sequence"))


@cache
def _wait() -> Counter:
    return Counter(WAIT, "seconds that the work waited for data", tag_keys=("stage",))


@cache
def _queue() -> Gauge:
    return Gauge(QUEUE, "images that nobody works on yet", tag_keys=("stage",))
