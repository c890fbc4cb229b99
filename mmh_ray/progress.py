"""Shows the progress of long steps: a live bar in a terminal, plain log lines everywhere else."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

log = logging.getLogger(__name__)

INTERVAL_S = 10.0
"""Least seconds between two log lines."""


class Advance(Protocol):
    """What :func:`progress` yields."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Count finished units; the note, such as `data wait 3 %`, is shown after the rate until the next call.

        A first call with a count of 0 marks the end of the start-up: rate and time left are measured from then on.
        Without it, they are measured from the first finished unit.
        """


@contextlib.contextmanager
def progress(total: int | None, title: str, unit: str = "items") -> Iterator[Advance]:
    """Show units done, total, rate and time left while the block runs.

    >>> with progress(2, "Preparing", unit="images") as advance:
    ...     for _ in range(2):
    ...         advance(1)

    Parameters
    ----------
    total:
        Units to do; None if that is not known in advance.
    title, unit:
        Name of the step, and what is counted.
    """
    console = Console(stderr=True)
    shown = _bar(total, title, unit, console) if console.is_terminal else _lines(total, title, unit)
    with shown as advance:
        yield advance


class _Pace:
    """Rate at which units are finished, measured from the first call of ``advance``, so without the start-up."""

    def __init__(self) -> None:
        self.done = 0
        self._created = time.monotonic()
        self._first: tuple[float, int] | None = None

    def advance(self, count: int) -> None:
        """Count finished units."""
        self.done += count
        if self._first is None:
            self._first = (time.monotonic(), self.done)

    def rate(self) -> str:
        """Units per second, or per minute if slow. Includes the start-up until a unit is finished after it."""
        rate = self._per_second()
        if rate is None:
            since_creation_s = time.monotonic() - self._created
            rate = self.done / max(since_creation_s, 1e-3)
        if rate >= 1 or not self.done:
            return f"{rate:.1f}/s"
        return f"{60 * rate:.1f}/min"

    def time_left(self, total: int | None) -> str:
        """For example `0:01:30 left`; empty if unknown."""
        rate = self._per_second()
        if not total or rate is None:
            return ""
        units_left = max(total - self.done, 0)
        clock = _clock(units_left / rate)
        return f"{clock} left"

    def _per_second(self) -> float | None:
        """Units per second; None until one is finished after the start-up."""
        if self._first is None:
            return None
        moment, units = self._first
        if self.done == units:
            return None
        return (self.done - units) / max(time.monotonic() - moment, 1e-3)


class _TimeLeft(ProgressColumn):
    """Time left at the average rate. Rich's column uses the last 30 seconds, in which no image may have finished."""

    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        """The column's text."""
        total = None if task.total is None else int(task.total)
        return Text(self._pace.time_left(total), style="progress.remaining")


@contextlib.contextmanager
def _bar(total: int | None, title: str, unit: str, console: Console) -> Iterator[Advance]:
    rate = TextColumn(f"{unit}, {{task.fields[rate]}} {{task.fields[note]}}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate)
    pace = _Pace()
    with Progress(*columns, TimeElapsedColumn(), _TimeLeft(pace), console=console) as bars:
        task = bars.add_task(title, total=total, rate=pace.rate(), note="")

        def advance(count: int = 1, note: str = "") -> None:
            pace.advance(count)
            bars.update(task, advance=count, rate=pace.rate(), note=note)

        yield advance


@contextlib.contextmanager
def _lines(total: int | None, title: str, unit: str) -> Iterator[Advance]:
    started = time.monotonic()
    shown = started
    pace = _Pace()
    last = ""

    def line(end: str = "") -> None:
        known = "" if total is None else f"/{total}"
        note = f", {last}" if last else ""
        log.info("%s: %d%s %s, %s%s%s", title, pace.done, known, unit, pace.rate(), end, note)

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal shown, last
        pace.advance(count)
        last = note
        if time.monotonic() - shown >= INTERVAL_S:
            shown = time.monotonic()
            time_left = pace.time_left(total)
            line(f", {time_left}" if time_left else "")

    try:
        yield advance
    finally:
        line(f", took {_clock(time.monotonic() - started)}")


def _clock(seconds: float) -> str:
    all_minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(all_minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
