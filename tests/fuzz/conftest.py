"""The guard that reads every fuzzed input.

Only the product's own errors are allowed, time and memory are limited, and nothing may be written elsewhere.
"""

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
"""CPU time, so that a busy machine does not make tests fail."""
MOST_WAITING = 60.0
"""Seconds of wall-clock time, on a busy machine too."""
MOST_BYTES = 2**30
MOST_CHARACTERS = 5000

REPORTED: list[str] = []
"""One line for each module that ran."""


class Guard:
    """Runs the readers of an input, and fails on any error, delay or memory use that is not allowed.

    Attributes
    ----------
    folder:
        The folder for inputs. Nothing may be written next to it.
    """

    def __init__(self, around: Path) -> None:
        self._around = around
        self.folder = around / "inside"
        self.folder.mkdir()
        self._start_bytes = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory
        self._inputs = 0
        self._refused = 0
        self._slowest = 0.0
        self._longest = 0.0

    def __call__(self, *readers: Callable[[], object]) -> None:
        """Read an input with each of these readers."""
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
        """Check that nothing was written next to the folder, and note the figures of the module."""
        assert list(self._around.iterdir()) == [self.folder]
        REPORTED.append(
            f"{name}: {self._inputs} inputs, {self._refused} of them refused; slowest {self._slowest:.2f} s "
            f"of the processor, {self._longest:.2f} s by the clock; peak of memory "
            f"{self._grown() / 2**20:.0f} MiB above the beginning"
        )

    def _grown(self) -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._start_bytes


def _refusal(read: Callable[[], object]) -> MMHError | None:
    """The product's own error if the reader raises one, else None; other errors are raised."""
    try:
        read()
    except MMHError as error:
        return error
    return None


class _Formatting(logging.Handler):
    """Formats each log message and discards it."""

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
    """Print what was tested and the seed, which repeats the run (MMH_FUZZ_SEED)."""
    if REPORTED:
        terminalreporter.section(f"fuzzing, seed {SEED}")
        terminalreporter.write_line("\n".join(REPORTED))
