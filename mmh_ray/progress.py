"""Progress of long steps: a live bar in a terminal, plain log lines everywhere else."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

INTERVAL_S = 10.0
"""Least seconds between two log lines."""


class Advance(Protocol):
    """What :func:`progress` yields."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Count finished units; the note (such as `data wait 3 %`) stands behind the rate until the next one."""


@contextlib.contextmanager
def progress(total: int | None, title: str, unit: str = "items") -> Iterator[Advance]:
    """Show units done, total, rate and time left while the block runs.

    >>> with progress(2, "Preparing", unit="images") as advance:
    ...     for _ in range(2):
    ...         advance(1)

    Parameters
    ----------
    total:
        Units to do; None where it is not known beforehand.
    title, unit:
        What is going on, and what is counted.
    """
    console = Console(stderr=True)
    with _bar(total, title, unit, console) if console.is_terminal else _lines(total, title, unit) as advance:
        yield advance


@contextlib.contextmanager
def _bar(total: int | None, title: str, unit: str, console: Console) -> Iterator[Advance]:
    rate = TextColumn(f"{unit}, {{task.fields[rate]}} {{task.fields[note]}}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(title, total=total, rate="-/s", note="")
        started, done = time.monotonic(), 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            bars.update(task, advance=count, rate=_rate(done, started), note=note)

        yield advance


@contextlib.contextmanager
def _lines(total: int | None, title: str, unit: str) -> Iterator[Advance]:
    started = shown = time.monotonic()
    done, last = 0, ""

    def line(end: str = "") -> None:
        known = "" if total is None else f"/{total}"
        log.info(
            "%s: %d%s %s, %s%s", title, done, known, unit, _rate(done, started), end + (f", {last}" if last else "")
        )

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, shown, last
        done, last = done + count, note
        if time.monotonic() - shown >= INTERVAL_S:
            shown = time.monotonic()
            line(_time_left(done, total, started))

    try:
        yield advance
    finally:
        line(f", took {_clock(time.monotonic() - started)}")


def _rate(done: int, started: float) -> str:
    """Units a second, or a minute where they are slow."""
    rate = done / max(time.monotonic() - started, 1e-3)
    return f"{rate:.1f}/s" if rate >= 1 or not done else f"{60 * rate:.1f}/min"


def _time_left(done: int, total: int | None, started: float) -> str:
    if not total or not done:
        return ""
    return f", {_clock((time.monotonic() - started) / done * max(total - done, 0))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
