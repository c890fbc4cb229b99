"""Handles SIGTERM, which batch systems send at a time limit, like Ctrl-C: clean up, then exit with code 130."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOPPED = "stopped by SIGTERM; run again to continue"
INTERRUPTED = "interrupted; run again to continue"

_received: str | None = None
"""Signal received in the outermost :func:`stoppable` block, in words. A KeyboardInterrupt loses its text in Ray."""


def end_reason(error: BaseException) -> str:
    """Why a run ended, in words."""
    if isinstance(error, KeyboardInterrupt):
        return _received or INTERRUPTED
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGTERM into a KeyboardInterrupt; a second SIGTERM is ignored during clean-up. Record Ctrl-C as well.

    Does nothing inside another such block, or outside the main thread, which alone can set signal handlers.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is _stop:
        yield
        return
    global _received
    _received = None
    before = signal.signal(signal.SIGTERM, _stop)
    before_interrupt = signal.getsignal(signal.SIGINT)
    if before_interrupt is signal.default_int_handler:  # a command in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if before_interrupt is signal.default_int_handler:
            signal.signal(signal.SIGINT, before_interrupt)
        _received = None


def raise_if_stopped() -> None:
    """Raise KeyboardInterrupt if a signal was received in the block; an import may have swallowed the first one."""
    if _received:
        raise KeyboardInterrupt(_received)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the handlers of SIGTERM and Ctrl-C that Ray replaces in the block.

    Ray's handlers raise SystemExit, some with code 0, which would look like success. It becomes a KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            _note(STOPPED)
        raise KeyboardInterrupt(end_reason(KeyboardInterrupt())) from error
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set by Python, so Python cannot restore it
                signal.signal(number, handler)


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _note(STOPPED)
    raise KeyboardInterrupt(STOPPED)


def _interrupt(*_: object) -> None:
    _note(_received or INTERRUPTED)
    raise KeyboardInterrupt(INTERRUPTED)


def _note(words: str) -> None:
    global _received
    _received = words
