"""SIGTERM, a batch system's word that the time is up, ends a command in order, as Ctrl-C does: with exit code 130."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOPPED = "stopped by SIGTERM; run again to go on"
INTERRUPTED = "interrupted; run again to go on"

_came: str | None = None
"""What came in the outermost :func:`stoppable` block, in words: a KeyboardInterrupt that passes through Ray loses its
own."""


def end_reason(error: BaseException) -> str:
    """What ended a run, in words."""
    if isinstance(error, KeyboardInterrupt):
        return _came or INTERRUPTED
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Make of SIGTERM a KeyboardInterrupt; a second one is ignored while all is put in order. Remember Ctrl-C, too.

    Inside another such block nothing changes. Nor does it outside the main thread, which alone may say what becomes of
    a signal.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is _stop:
        yield
        return
    global _came
    _came = None
    before = signal.signal(signal.SIGTERM, _stop)
    before_interrupt = signal.getsignal(signal.SIGINT)
    if before_interrupt is signal.default_int_handler:  # not of a command in the background, which ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if before_interrupt is signal.default_int_handler:
            signal.signal(signal.SIGINT, before_interrupt)
        _came = None


def raise_if_stopped() -> None:
    """Raise KeyboardInterrupt if a signal has come in the block: one that strikes while packages are imported may be
    swallowed there."""
    if _came:
        raise KeyboardInterrupt(_came)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of SIGTERM and Ctrl-C back that Ray replaces in the block; where one of Ray's struck, raise
    KeyboardInterrupt.

    Those leave by SystemExit, some with code 0, which would pass for a good end.
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
            if handler is not None:  # None: it was not set by Python, and cannot be
                signal.signal(number, handler)


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _note(STOPPED)
    raise KeyboardInterrupt(STOPPED)


def _interrupt(*_: object) -> None:
    _note(_came or INTERRUPTED)
    raise KeyboardInterrupt(INTERRUPTED)


def _note(words: str) -> None:
    global _came
    _came = words
