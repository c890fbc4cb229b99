"""The guard of every fuzzed input: only the product's own errors, in time, in bounded memory, and nothing written elsewhere."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mmh_ray.errors import MMHError
from tests.fuzz.mutations import SEED

MOST_SECONDS = 5.0
"""Of the processor, so that a busy machine fails no test."""
MOST_WAITING = 60.0
"""Seconds by the clock, whatever the machine does besides."""
MOST_BYTES = 2**30
MOST_CHARACTERS = 5000

REPORTED: list[str] = []
"""A line for every module that ran."""


class Guard:
    """Runs what reads an input, and fails where the product lets its reader down.

    Attributes
    ----------
    folder:
        Where inputs lie. What lies beside it is outside.
    """

    def __init__(self, around: Path) -> None:
        self._around = around
        self.folder = around / "inside"
        self.folder.mkdir()
        self._start_bytes = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        self._inputs = 0
        self._refused = 0
        self._slowest = 0.0
        self._longest = 0.0

    def __call__(self, *readers: Callable[[], object]) -> None:
        """Let an input be read in these ways, each by itself."""
        self._inputs += 1
        started = time.monotonic()
        started_work = time.process_time()
        refused = [error for error in map(_refusal, readers) if error is not None]
        seconds = time.process_time() - started_work
        waited = time.monotonic() - started
        self._refused += bool(refused)
        self._slowest = max(self._slowest, seconds)
        self._longest = max(self._longest, waited)
        assert seconds < MOST_SECONDS, f"{seconds:.1f} s of the processor for one input"
        assert waited < MOST_WAITING, f"{waited:.0f} s for one input"
        assert self._grown() < MOST_BYTES, f"{self._grown() / 2**20:.0f} MiB more than in the beginning"
        for error in refused:
            assert min(len(error.received), len(error.expected), len(error.remedy)) > 0, repr(error.args)
            assert len(str(error)) <= MOST_CHARACTERS, f"an error of {len(str(error))} characters"

    def close(self, name: str) -> None:
        """Nothing may have been written beside the folder."""
        assert list(self._around.iterdir()) == [self.folder]
        REPORTED.append(
            f"{name}: {self._inputs} inputs, {self._refused} of them refused; slowest {self._slowest:.2f} s "
            f"of the processor, {self._longest:.2f} s by the clock; peak of memory {self._grown() / 2**20:.0f} MiB above the beginning"
        )

    def _grown(self) -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._start_bytes


def _refusal(read: Callable[[], object]) -> MMHError | None:
    """The product's own error, if a reader raises it; any other is a fault."""
    try:
        read()
    except MMHError as error:
        return error
    return None


class _Formatting(logging.Handler):
    """Formats what is logged, and keeps nothing of it."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


@pytest.fixture(scope="module")
def guard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """A guard for a module's inputs."""
    logger = logging.getLogger("mmh_ray")
    handler = _Formatting()
    logger.addHandler(handler)
    logger.propagate = False
    guard = Guard(tmp_path_factory.mktemp("fuzz"))
    yield guard
    logger.propagate = True
    logger.removeHandler(handler)
    guard.close(request.path.stem)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a run looked at; the seed repeats it (MMH_FUZZ_SEED)."""
    if REPORTED:
        terminalreporter.section(f"fuzzing, seed {SEED}")
        terminalreporter.write_line("\n".join(REPORTED))
